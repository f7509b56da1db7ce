// A page's place in one tier.
#pragma once

#include <cstdint>

namespace kvstore {

// `slab` ids count up and are not reused for other memory; `slot` counts slots of the slab's
// present slot size.
struct PageId {
  uint32_t slab = 0;
  uint32_t slot = 0;
  uint64_t generation = 0;  // of the slot, odd: in use; differs for every use of the slot
  friend bool operator==(const PageId&, const PageId&) = default;
};

}  // namespace kvstore
