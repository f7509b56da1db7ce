#include "kvstore/store/recovery.h"

#include <algorithm>
#include <string>
#include <utility>

namespace kvstore::store {

// What tiers have at hand comes first; then those that have to read theirs; pages of the former
// when all is known.
void Recovery::Start(absl::AnyInvocable<void(absl::Status)> on_finished) {
  on_finished_ = std::move(on_finished);
  if (durable_.empty()) return on_finished_(absl::OkStatus());
  tiers_left_ = durable_.all().size();
  knows_namespaces_ = false;
  std::vector<std::pair<TierKind, tiers::Durable*>> readers;
  for (const auto& [kind, tier] : durable_.all()) {
    for (const auto& [key, value] : tier->metadata()) RestoreMetadata(kind, key, value);
    // The NVMe tier tells its metadata before its pages; a tier in memory has told all.
    (kind == TierKind::kNvme ? readers : waiting_tiers_).emplace_back(kind, tier);
  }
  if (readers.empty()) return OnNamespacesKnown();
  for (const auto& [kind, tier] : readers) StartTier(kind, tier);
}

void Recovery::StartTier(TierKind kind, tiers::Durable* tier) {
  tiers::Durable::RecoveryHooks hooks;
  hooks.on_metadata = [this, kind](const std::string& key, const std::string& value) {
    RestoreMetadata(kind, key, value);
  };
  hooks.on_pages = [this, kind](const std::vector<tiers::RecoveredPage>& pages) {
    OnNamespacesKnown();
    std::vector<bool> kept(pages.size());
    for (size_t i = 0; i < pages.size(); ++i) kept[i] = RestorePage(kind, pages[i]);
    return kept;
  };
  hooks.pool_of = [this](const PageIdentity& identity) -> PoolId {
    const Namespace* ns = namespaces_.Find(identity.fingerprint);
    return ns == nullptr ? PoolId(UINT32_MAX) : ns->pool;
  };
  hooks.on_finished = [this](absl::Status status) { OnTierFinished(std::move(status)); };
  tier->Recover(std::move(hooks));
}

void Recovery::OnTierFinished(absl::Status status) {
  status_.Update(status);
  OnNamespacesKnown();
  if (--tiers_left_ > 0) return;
  tenant_admin_.EnforceQuotas();
  OfferToColderTiers();
  on_finished_(std::move(status_));
}

void Recovery::WhenNamespacesAreKnown(absl::AnyInvocable<void()> run) {
  knows_namespaces_ ? run() : waiting_.push_back(std::move(run));
}

void Recovery::OnNamespacesKnown() {
  if (std::exchange(knows_namespaces_, true)) return;
  SaveWhatIsNewer();
  for (const auto& [kind, tier] : std::exchange(waiting_tiers_, {})) StartTier(kind, tier);
  for (auto& run : std::exchange(waiting_, {})) run();
}

// A tier may be new, or have missed a clear that another one knows of.
void Recovery::SaveWhatIsNewer() {
  for (const Namespace* ns : namespaces_.All()) {
    for (const auto& [kind, tier] : durable_.all()) {
      const auto recorded = recorded_[Pos(kind)].find(ns->fingerprint);
      if (recorded != recorded_[Pos(kind)].end() && recorded->second >= ns->epoch) continue;
      tier->SaveMetadata(std::string(kNamespaceKeyPrefix) + ns->fingerprint.Hex(),
                         NamespaceTable::EncodeRecord(*ns), [](absl::Status) {});
      tier->EraseEpochs(ns->fingerprint, ns->epoch, [](absl::Status) {});
    }
  }
  recorded_ = {};
  quotas_known_ = {};
}

void Recovery::OfferToColderTiers() {
  if (std::ranges::none_of(
          durable_.all(), [this](const auto& entry) { return copies_.HasColderTier(entry.first); }))
    return;
  for (NodeId id = 0; id < copies_.index().id_end(); ++id) {
    if (!copies_.index().IsLive(id)) continue;
    for (const auto& [kind, tier] : durable_.all()) {
      if (copies_.IsResident(id, kind) && copies_.HasColderTier(kind) &&
          !copies_.HasColderCopy(id, kind)) {
        on_lacks_colder_copy_(id, kind);
      }
    }
  }
}

void Recovery::RestoreMetadata(TierKind kind, std::string_view key, std::string_view value) {
  if (const auto tenant = TenantAdmin::TenantOfKey(key)) {
    // Memory is told at once, a disk when it can: the hottest tier knows best.
    if (quotas_known_.emplace(std::string(*tenant), kind).first->second != kind) return;
    return tenant_admin_.Restore(*tenant, value);
  }
  if (!key.starts_with(kNamespaceKeyPrefix)) return;
  uint64_t epoch = 0;
  const absl::StatusOr<Namespace*> ns = namespaces_.Restore(value, &epoch);
  if (!ns.ok()) return;  // its pages will be refused, and so removed
  recorded_[Pos(kind)][(*ns)->fingerprint] = epoch;
  (void)copies_.OpenPools(**ns);
  durable_.NameNamespace((*ns)->fingerprint, (*ns)->name);
  // In case the daemon died between the two halves of a Clear().
  durable_.EraseEpochs((*ns)->fingerprint, (*ns)->epoch, [](absl::Status) {});
}

bool Recovery::RestorePage(TierKind kind, const tiers::RecoveredPage& page) {
  const PageIdentity& identity = page.identity;
  const Namespace* ns = namespaces_.Find(identity.fingerprint);
  if (ns == nullptr || identity.epoch != ns->epoch || !(identity.shape == ns->spec.shape))
    return false;
  if (copies_.index().num_nodes() + 2 > blocks_max_) return false;  // a parent may come, too
  const NodeId known = copies_.index().Find(ns->id, identity.hash);
  if (known != index::kNoNode) {
    const index::Node& node = copies_.index().node(known);
    if (copies_.state(known, kind) != CopyState::kAbsent ||
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
  copies_.BeginWrite(id, kind, page.page);
  copies_.Publish(id, kind, Recency::kOldest);
  ++copies_.counters(kind).recovered_pages;
  return true;
}

}  // namespace kvstore::store
