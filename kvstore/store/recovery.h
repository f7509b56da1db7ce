// Recovery fills the index with what durable tiers kept: namespaces and quotas of all of them
// first, then pages, beside other work. A block can be matched as soon as it is known.
//
// A namespace has the highest epoch that any tier knows, before the first page of any is taken: a
// clear that reached one of them must not be undone by pages of another.
//
// Confined to the core thread.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/durable_tiers.h"
#include "kvstore/store/namespace_table.h"
#include "kvstore/store/tenant_admin.h"

namespace kvstore::store {

// Of durable metadata: this, then the fingerprint in hex.
inline constexpr std::string_view kNamespaceKeyPrefix = "ns/";

class Recovery {
 public:
  Recovery(size_t blocks_max, NamespaceTable& namespaces, Copies& copies, TenantAdmin& tenant_admin,
           DurableTiers& durable)
      : blocks_max_(blocks_max),
        namespaces_(namespaces),
        copies_(copies),
        tenant_admin_(tenant_admin),
        durable_(durable) {}

  // Told of each block that came back in `kind` and, as far as is known when all has come back, in
  // no colder tier.
  void set_on_lacks_colder_copy(std::function<void(NodeId, TierKind)> on_lacks_colder_copy) {
    on_lacks_colder_copy_ = std::move(on_lacks_colder_copy);
  }

  // Once, first. `on_finished` once, with the first error of a tier.
  void Start(absl::AnyInvocable<void(absl::Status)> on_finished);
  bool is_running() const { return tiers_left_ > 0; }
  // What opens or clears namespaces waits until those that are stored are known: it would write
  // over their records, and an epoch that goes back brings cleared blocks back.
  void WhenNamespacesAreKnown(absl::AnyInvocable<void()> run);

 private:
  void StartTier(TierKind kind, tiers::Durable* tier);
  void OnTierFinished(absl::Status status);
  void OnNamespacesKnown();
  void SaveWhatIsNewer();
  void OfferToColderTiers();
  void RestoreMetadata(TierKind kind, std::string_view key, std::string_view value);
  // False: it is not to be used, and its tier may forget it.
  bool RestorePage(TierKind kind, const tiers::RecoveredPage& page);

  const size_t blocks_max_;
  NamespaceTable& namespaces_;
  Copies& copies_;
  TenantAdmin& tenant_admin_;
  DurableTiers& durable_;
  std::function<void(NodeId, TierKind)> on_lacks_colder_copy_;
  absl::AnyInvocable<void(absl::Status)> on_finished_;
  absl::Status status_;
  size_t tiers_left_ = 0;
  bool knows_namespaces_ = true;
  std::vector<std::pair<TierKind, tiers::Durable*>> waiting_tiers_;  // for the namespaces
  // The epoch that each tier has on record.
  std::array<std::map<Fingerprint, uint64_t>, tiers::kNumTierKinds> recorded_;
  std::map<std::string, TierKind> quotas_known_;     // by tenant, from that tier
  std::vector<absl::AnyInvocable<void()>> waiting_;  // bounded by the calls admitted
};

}  // namespace kvstore::store
