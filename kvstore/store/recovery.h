// Recovery fills the index with what a durable tier kept: namespaces and quotas first, then pages,
// beside other work. A block can be matched as soon as it is known.
//
// Confined to the core thread.
#pragma once

#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/namespace_table.h"
#include "kvstore/store/tenant_admin.h"

namespace kvstore::store {

// Of durable metadata: this, then the fingerprint in hex.
inline constexpr std::string_view kNamespaceKeyPrefix = "ns/";

class Recovery {
 public:
  Recovery(size_t blocks_max, NamespaceTable& namespaces, Copies& copies, TenantAdmin& tenant_admin)
      : blocks_max_(blocks_max),
        namespaces_(namespaces),
        copies_(copies),
        tenant_admin_(tenant_admin) {}

  // Once, first. `on_finished` once.
  void Start(tiers::DurableTier* tier, absl::AnyInvocable<void(absl::Status)> on_finished);
  bool is_running() const { return is_running_; }
  // What opens or clears namespaces waits until those on disk are known: it would write over their
  // records, and an epoch that goes back brings cleared blocks back.
  void WhenNamespacesAreKnown(absl::AnyInvocable<void()> run);

 private:
  void OnNamespacesKnown();
  void RestoreMetadata(std::string_view key, std::string_view value);
  // False: it is not to be used, and its tier may forget it.
  bool RestorePage(const tiers::RecoveredPage& page);

  const size_t blocks_max_;
  NamespaceTable& namespaces_;
  Copies& copies_;
  TenantAdmin& tenant_admin_;
  tiers::DurableTier* tier_ = nullptr;
  bool is_running_ = false;
  bool knows_namespaces_ = true;
  std::vector<absl::AnyInvocable<void()>> waiting_;  // bounded by the calls admitted
};

}  // namespace kvstore::store
