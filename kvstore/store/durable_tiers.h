// The tiers that outlive the process, as one: what is said to them is said to each.
//
// Confined to the core thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvstore/base/namespace_spec.h"
#include "kvstore/store/store.h"
#include "tiers/tier.h"

namespace kvstore::store {

class DurableTiers {
 public:
  explicit DurableTiers(const Store::Tiers& tiers);

  // Hottest first.
  const std::vector<std::pair<TierKind, tiers::Durable*>>& all() const { return all_; }
  bool empty() const { return all_.empty(); }

  // As tiers::Durable. `done` once, when each tier has reported, with the first error.
  void SaveMetadata(const std::string& key, const std::string& value, tiers::Durable::Done done);
  void EraseEpochs(const Fingerprint& fingerprint, uint64_t epoch, tiers::Durable::Done done);
  void NameNamespace(const Fingerprint& fingerprint, std::string_view name);

 private:
  std::vector<std::pair<TierKind, tiers::Durable*>> all_;
};

}  // namespace kvstore::store
