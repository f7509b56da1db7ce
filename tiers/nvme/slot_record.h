// A slot on its way to and from disk: what differs between the slot in memory and the one on disk
// is its tail, the blocks of 4 KiB behind the page.
//
// Pure functions; they run on the progress thread of the file mover.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kvstore/base/page_trailer.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {

// Where the tail starts: the last multiple of 4096 that is not behind the end of the page.
inline uint64_t TailOffset(const PageShape& shape) { return shape.page_bytes() & ~uint64_t{4095}; }
inline uint64_t TailBytes(const PageShape& shape) { return shape.slot_bytes() - TailOffset(shape); }
// For every shape that a namespace can have: 4095 bytes of page, padding, trailer and 1024 slice
// checksums, rounded up.
inline constexpr uint64_t kTailBytesMax = 16384;

// Makes in `tail` (TailBytes()) what goes to disk in place of the tail of `slot`: sealed with
// `generation`. `slot` is only read: clients may have it mapped. Checks the slice checksums against
// identity.page_checksum, not the slices: the caller does that (VerifySlot) on another thread.
// Errors: DataLoss.
absl::Status MakeTail(std::byte* tail, const std::byte* slot, const PageIdentity& identity,
                      uint64_t generation);

// Checks everything in a slot that was read from disk: trailer, padding, every slice. Then clears
// what belongs to the disk (generation, record checksum): the slot is as it was before MakeTail().
// Errors: DataLoss, with what differs.
absl::Status AcceptSlot(std::byte* slot, const PageIdentity& expect, uint64_t generation);

// As AcceptSlot() for a slot that arrives tail first and then from its start on: says how many
// leading slices are there and right. Checks each of them once, against a table of its own.
//
// Confined to one thread.
class SlotArrival {
 public:
  SlotArrival(std::byte* slot, const PageIdentity& expect, uint64_t generation)
      : slot_(slot), expect_(expect), generation_(generation) {}

  // `moved_bytes`: of the slot's bytes before its tail, rising to all of them; 0, first, when only
  // the tail is there. Errors: DataLoss, with what differs.
  absl::Status OnBytes(uint64_t moved_bytes);
  // Leading slices that were checked.
  uint32_t ready_slices() const { return ready_slices_; }

 private:
  std::byte* const slot_;
  const PageIdentity expect_;
  const uint64_t generation_;
  transfer::SliceTable table_;
  uint32_t ready_slices_ = 0;
};

}  // namespace kvstore::tiers
