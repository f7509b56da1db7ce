// What operators ask and say about tenants: what each has, and what it may have.
//
// Confined to the core thread.
#pragma once

#include <string_view>
#include <vector>

#include "kvstore/store/copies.h"
#include "kvstore/store/durable_tiers.h"
#include "kvstore/store/loads.h"
#include "kvstore/store/moves.h"
#include "kvstore/store/room.h"
#include "kvstore/store/sessions.h"

namespace kvstore::store {

class TenantAdmin {
 public:
  TenantAdmin(TenantTable& tenants, const Copies& copies, Room& room, const Moves& moves,
              const SessionTable& sessions, const Loads& loads, DurableTiers& durable)
      : tenants_(tenants),
        copies_(copies),
        room_(room),
        moves_(moves),
        sessions_(sessions),
        loads_(loads),
        durable_(durable) {}

  // As Store::ListTenants and Store::SetQuota.
  std::vector<TenantRow> List() const;
  void SetQuota(std::string_view tenant, TierKind tier, uint64_t bytes, QuotaLife life,
                tiers::Tier::Done done);

  // The tenant whose quotas a durable record under `key` keeps; nullopt: it keeps something else.
  static std::optional<std::string_view> TenantOfKey(std::string_view key);
  // Quotas that were set in this run are newer. A record that cannot be read costs its quotas.
  void Restore(std::string_view tenant, std::string_view record);
  // Begins to evict what is over a quota: recovery may have found more.
  void EnforceQuotas();
  // Sessions, leased and reserved blocks of every tenant, counted again.
  absl::Status CheckInvariants() const;

 private:
  TenantTable& tenants_;
  const Copies& copies_;
  Room& room_;
  const Moves& moves_;
  const SessionTable& sessions_;
  const Loads& loads_;
  DurableTiers& durable_;
};

}  // namespace kvstore::store
