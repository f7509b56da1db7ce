// A tenant's quotas as a durable tier keeps them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "tiers/tier.h"

namespace kvstore::store {

// On disk: "kvqr1", then one little-endian uint64 a tier in the order of TierKind. Do not reorder;
// a new tier is added at the end, and a record without it means that it has no quota.
struct QuotaRecord {
  std::array<uint64_t, tiers::kNumTierKinds> bytes{};  // 0: none

  std::string Encode() const;
  // Errors: DataLoss.
  static absl::StatusOr<QuotaRecord> Decode(std::string_view record);
};

}  // namespace kvstore::store
