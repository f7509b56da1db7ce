// A slot that was read back from disk: page, padding, trailer, slice checksums.
//
//   input: how u8, slices u8, slice bytes u16, identity seed u8, then
//     how even: [offset u32, xor u8]*, edits of a slot that was sealed for that identity
//     how odd:  the slot's bytes as they are (what is missing is zero)
//
// Promises: only the bytes that were sealed are accepted, all of them, for that block, epoch and
// generation; what is accepted is the slot as it was in memory.
#include "kvstore/base/page_trailer.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/page_identity.h"
#include "tiers/nvme/slot_record.h"
#include "transfer/memory/page_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  const bool is_raw = (input.Take<uint8_t>() & 1) != 0;
  PageIdentity identity = fuzz::TakeIdentity(input);
  const PageShape& shape = identity.shape;
  const uint64_t generation = 7;
  // What a client saved, and what goes to disk of it.
  std::string saved(shape.slot_bytes(), '\0');
  const std::string page(shape.page_bytes(), 'k');
  auto* slot = reinterpret_cast<std::byte*>(saved.data());
  identity.page_checksum =
      transfer::CopyIntoSlot(slot, reinterpret_cast<const std::byte*>(page.data()), identity);
  std::string on_disk = saved;
  REQUIRE(tiers::MakeTail(reinterpret_cast<std::byte*>(on_disk.data()) + tiers::TailOffset(shape),
                          slot, identity, generation)
              .ok());

  std::string read = on_disk;
  if (is_raw) {
    read = fuzz::Copy(input.TakeBytes(shape.slot_bytes()));
    read.resize(shape.slot_bytes());
  } else {
    fuzz::Edit(input, read);
  }
  auto* read_slot = reinterpret_cast<std::byte*>(read.data());
  const bool is_same = read == on_disk;
  std::string copied(shape.page_bytes(), '\0');
  auto* copied_page = reinterpret_cast<std::byte*>(copied.data());
  // What readers of shared memory do: the trailer is not theirs to check.
  if (transfer::CopyFromSlot(copied_page, read_slot, identity).ok()) REQUIRE(copied == page);
  transfer::SliceTable table;
  if (table.Load(read_slot, identity).ok()) {
    const uint32_t last = shape.num_slices - 1;
    copied.assign(shape.slice_bytes, '\0');
    if (transfer::CopySliceFromSlot(copied_page, read_slot, identity, table, last).ok())
      REQUIRE(copied == page.substr(0, shape.slice_bytes));
  }
  // Another epoch, another generation: never.
  PageIdentity other = identity;
  ++other.epoch;
  REQUIRE(!transfer::CheckRecord(read_slot, other, generation).ok());
  REQUIRE(!transfer::CheckRecord(read_slot, identity, generation + 1).ok());
  const bool is_accepted = tiers::AcceptSlot(read_slot, identity, generation).ok();
  REQUIRE(is_accepted == is_same);
  if (is_accepted) REQUIRE(read == saved);
  return 0;
}
