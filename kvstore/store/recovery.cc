#include "kvstore/store/recovery.h"

#include <string>
#include <utility>

namespace kvstore::store {

void Recovery::Start(tiers::DurableTier* tier, absl::AnyInvocable<void(absl::Status)> on_finished) {
  tier_ = tier;
  is_running_ = true;
  knows_namespaces_ = false;
  tiers::DurableTier::RecoveryHooks hooks;
  hooks.on_metadata = [this](const std::string& key, const std::string& value) {
    RestoreMetadata(key, value);
  };
  hooks.on_pages = [this](const std::vector<tiers::RecoveredPage>& pages) {
    OnNamespacesKnown();
    std::vector<bool> kept(pages.size());
    for (size_t i = 0; i < pages.size(); ++i) kept[i] = RestorePage(pages[i]);
    return kept;
  };
  hooks.pool_of = [this](const PageIdentity& identity) -> PoolId {
    const Namespace* ns = namespaces_.Find(identity.fingerprint);
    return ns == nullptr ? PoolId(UINT32_MAX) : ns->pool;
  };
  hooks.on_finished = [this, done = std::move(on_finished)](absl::Status status) mutable {
    is_running_ = false;
    OnNamespacesKnown();
    tenant_admin_.EnforceQuotas();
    done(std::move(status));
  };
  tier->Recover(std::move(hooks));
}

void Recovery::WhenNamespacesAreKnown(absl::AnyInvocable<void()> run) {
  knows_namespaces_ ? run() : waiting_.push_back(std::move(run));
}

void Recovery::OnNamespacesKnown() {
  if (std::exchange(knows_namespaces_, true)) return;
  for (auto& run : std::exchange(waiting_, {})) run();
}

void Recovery::RestoreMetadata(std::string_view key, std::string_view value) {
  if (const auto tenant = TenantAdmin::TenantOfKey(key))
    return tenant_admin_.Restore(*tenant, value);
  if (!key.starts_with(kNamespaceKeyPrefix)) return;
  const absl::StatusOr<Namespace*> ns = namespaces_.Restore(value);
  if (!ns.ok()) return;  // its pages will be refused, and so removed
  (void)copies_.OpenPools(**ns);
  tier_->NameNamespace((*ns)->fingerprint, (*ns)->name);
  // In case the daemon died between the two halves of a Clear().
  tier_->EraseEpochs((*ns)->fingerprint, (*ns)->epoch, [](absl::Status) {});
}

bool Recovery::RestorePage(const tiers::RecoveredPage& page) {
  const PageIdentity& identity = page.identity;
  const Namespace* ns = namespaces_.Find(identity.fingerprint);
  if (ns == nullptr || identity.epoch != ns->epoch || !(identity.shape == ns->spec.shape))
    return false;
  if (copies_.index().num_nodes() + 2 > blocks_max_) return false;  // a parent may come, too
  const NodeId known = copies_.index().Find(ns->id, identity.hash);
  if (known != index::kNoNode) {
    const index::Node& node = copies_.index().node(known);
    if (copies_.state(known, TierKind::kNvme) != CopyState::kAbsent ||
        node.block_index != identity.block_index)
      return false;
    if (node.IsResident() && node.page_checksum != identity.page_checksum) return false;
    // A client is writing it anew and will say which bytes are right.
    if (!node.IsResident() && node.copies.HasAny()) return false;
  }
  NodeId parent = index::kNoNode;
  if (identity.block_index > 0) {
    parent = copies_.index().FindOrInsert(ns->id, identity.parent, index::kNoNode,
                                          identity.block_index - 1);
    if (copies_.index().node(parent).block_index + 1 != identity.block_index) {
      copies_.index().EraseIfUnused(parent);
      return false;
    }
  }
  const NodeId id =
      copies_.index().FindOrInsert(ns->id, identity.hash, parent, identity.block_index);
  copies_.index().node(id).page_checksum = identity.page_checksum;
  copies_.BeginWrite(id, TierKind::kNvme, page.page);
  copies_.Publish(id, TierKind::kNvme, Recency::kOldest);
  ++copies_.counters(TierKind::kNvme).recovered_pages;
  return true;
}

}  // namespace kvstore::store
