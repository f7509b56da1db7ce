// Names of tiers on the command line and in JSON.
#pragma once

#include <string>

#include "kvstore/v1/common.pb.h"

namespace kvstore::kvctl {

inline std::string TierText(v1::Tier tier) {
  switch (tier) {
    case v1::TIER_GPU:
      return "gpu";
    case v1::TIER_DRAM:
      return "dram";
    case v1::TIER_NVME:
      return "nvme";
    default:
      return "unknown";
  }
}

// TIER_UNSPECIFIED for the empty string. The parser has checked that it is one of the names.
inline v1::Tier TierOf(const std::string& name) {
  for (const v1::Tier tier : {v1::TIER_GPU, v1::TIER_DRAM, v1::TIER_NVME}) {
    if (TierText(tier) == name) return tier;
  }
  return v1::TIER_UNSPECIFIED;
}

}  // namespace kvstore::kvctl
