#include "tiers/nvme/slot_record.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {
namespace {

static_assert(4095 + 7 + sizeof(PageTrailer) + 8 * kNumSlicesMax <= kTailBytesMax);

bool IsZero(const std::byte* begin, const std::byte* end) {
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{0}; });
}

// All that lies behind the page: trailer and padding, not the slice checksums.
absl::Status CheckTail(const std::byte* slot, const PageIdentity& expect, uint64_t generation) {
  const PageShape& shape = expect.shape;
  RETURN_IF_ERROR(transfer::CheckRecord(slot, expect, generation));
  const uint64_t table_end = transfer::SliceChecksumsOffset(shape) + uint64_t{8} * shape.num_slices;
  if (IsZero(slot + shape.page_bytes(), slot + TrailerOffset(shape)) &&
      IsZero(slot + table_end, slot + shape.slot_bytes())) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat("block ", expect.hash.Hex().substr(0, 16), ": padding of its slot is not zero"));
}

// What belongs to the disk.
void ClearRecord(std::byte* slot, const PageShape& shape) {
  PageTrailer trailer;
  std::memcpy(&trailer, slot + TrailerOffset(shape), sizeof trailer);
  trailer.generation = 0;
  trailer.record_checksum = 0;
  std::memcpy(slot + TrailerOffset(shape), &trailer, sizeof trailer);
}

}  // namespace

absl::Status MakeTail(std::byte* tail, const std::byte* slot, const PageIdentity& identity,
                      uint64_t generation) {
  const uint64_t offset = TailOffset(identity.shape);
  std::memcpy(tail, slot + offset, TailBytes(identity.shape));
  // The codec wants the start of the slot and here touches nothing before the end of the page, so
  // it is given where the slot would start if the tail were in its place. All checks are on our
  // copy.
  auto* as_slot = reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(tail) - offset);
  RETURN_IF_ERROR(transfer::CheckSliceTable(as_slot, identity));
  transfer::SealRecord(as_slot, identity, generation);
  return absl::OkStatus();
}

absl::Status AcceptSlot(std::byte* slot, const PageIdentity& expect, uint64_t generation) {
  RETURN_IF_ERROR(CheckTail(slot, expect, generation));
  RETURN_IF_ERROR(transfer::VerifySlot(slot, expect));
  ClearRecord(slot, expect.shape);
  return absl::OkStatus();
}

absl::Status SlotArrival::OnBytes(uint64_t moved_bytes) {
  const PageShape& shape = expect_.shape;
  if (moved_bytes == 0) {
    RETURN_IF_ERROR(CheckTail(slot_, expect_, generation_));
    return table_.Load(slot_, expect_);
  }
  // The end of the last slice lies in the tail.
  const bool is_whole = moved_bytes == TailOffset(shape);
  const uint64_t there = is_whole ? shape.page_bytes() : moved_bytes;
  while (ready_slices_ < shape.num_slices &&
         (uint64_t{ready_slices_} + 1) * shape.slice_bytes <= there) {
    RETURN_IF_ERROR(transfer::VerifySlice(slot_, expect_, table_, ready_slices_));
    ++ready_slices_;
  }
  if (is_whole) ClearRecord(slot_, shape);
  return absl::OkStatus();
}

}  // namespace kvstore::tiers
