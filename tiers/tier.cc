#include "tiers/tier.h"

namespace kvstore::tiers {

std::string_view TierName(TierKind kind) {
  switch (kind) {
    case TierKind::kGpu:
      return "gpu";
    case TierKind::kDram:
      return "dram";
    case TierKind::kNvme:
      return "nvme";
  }
  return "?";
}

}  // namespace kvstore::tiers
