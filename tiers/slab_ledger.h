// SlabLedger says what lies in every slot of a memory tier, so that the process that comes after
// this one can find it again. It lies in memory of its own that no client ever maps: identities,
// tenants and epochs come from here, never from slots, which clients can write.
//
//   | header 4096 | starts, metadata: one cell each | slab records 512 x num_slabs |
//   | metadata: two halves | slot entries 128 x (slab_bytes / 4096) x num_slabs |
//
// In memory, little-endian; golden bytes in tests/golden/dram. Sparse: entries of slots that were
// never used take no memory.
//
// What a death at any instruction leaves: a record is made invalid (its checksum is 0) before it is
// changed, and its checksum, seeded with its place, is stored last. So it is the old one, none, or
// the new one. Metadata is written into the half that is not valid, and then one 8-byte cell says
// which half is. Memory does not lose stores of a process that was killed, so their order is all
// that matters. A power loss loses the memory and this with it.
//
// Confined to the core thread (and to whoever starts the tier, before it).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/page_trailer.h"
#include "tiers/slab_memory.h"

namespace kvstore::tiers {

inline constexpr uint32_t kSlabLedgerVersion = 1;

class SlabLedger {
 public:
  using BootId = std::array<uint8_t, 16>;
  struct Geometry {
    uint64_t slab_bytes = 0;
    uint32_t num_slabs = 0;
    uint64_t metadata_bytes = uint64_t{16} << 20;  // a half; multiple of 4096
    BootId boot{};                                 // of the machine: no memory outlives it
  };
  using Metadata = std::map<std::string, std::string>;

  static uint64_t BytesFor(const Geometry& geometry);
  // A new ledger in zeroed memory of BytesFor() bytes, which outlives the object. `id`: random.
  static SlabLedger Format(std::byte* memory, const Geometry& geometry, uint64_t id);
  // The ledger that an earlier process left. Errors, and then nothing of it is to be used:
  // FailedPrecondition, another version, geometry or boot (the message says which); DataLoss.
  static absl::StatusOr<SlabLedger> Attach(std::byte* memory, uint64_t bytes,
                                           const Geometry& geometry);

  // Counts a start of a process on it; the count. Errors: ResourceExhausted, there were too many.
  absl::StatusOr<uint32_t> CountStart();
  static constexpr uint32_t kStartsMax = 65535;

  // One slab: which memory, whose, and how it is cut.
  struct Slab {
    uint32_t id = 0;
    SlabMark mark;
    uint64_t slot_bytes = 0;            // 0: never given to a pool
    std::optional<std::string> tenant;  // of its memory, for ever
    friend bool operator==(const Slab&, const Slab&) = default;
  };
  static constexpr size_t kTenantBytesMax = 256;
  // nullopt: none, or damaged.
  std::optional<Slab> ReadSlab(uint32_t index) const;
  // Requires: no slot of it is reserved or has a page. Errors: InvalidArgument, the tenant's name
  // is too long.
  absl::Status WriteSlab(uint32_t index, const Slab& slab);

  // kReserved: somebody may have been writing it. kDamaged: the entry is not what was written.
  enum class SlotState { kFree, kReserved, kPage, kDamaged };
  struct Slot {
    SlotState state = SlotState::kFree;
    PageIdentity identity;  // kPage: of what its bytes must be
  };
  // Requires: ReadSlab() or WriteSlab() gave the slab a slot size, and `slot` is below slots_of().
  Slot ReadSlot(uint32_t index, uint32_t slot) const;
  uint32_t slots_of(uint32_t index) const;
  void NoteReserved(uint32_t index, uint32_t slot);
  void NotePage(uint32_t index, uint32_t slot, const PageIdentity& identity);
  void NoteFree(uint32_t index, uint32_t slot);

  Metadata LoadMetadata() const;
  // All of it, replacing what was there. Errors: ResourceExhausted, more than metadata_bytes.
  absl::Status SaveMetadata(const Metadata& metadata);

 private:
  struct Header;
  struct SlabRecord;
  struct Entry;
  // What the checksums of a slab's entries are seeded with; slot_bytes 0: not known.
  struct Cut {
    uint32_t id = 0;
    uint64_t slot_bytes = 0;
  };

  SlabLedger(std::byte* memory, const Geometry& geometry, uint64_t id);
  SlabRecord* RecordAt(uint32_t index) const;
  Entry* EntryAt(uint32_t index, uint32_t slot) const;
  uint64_t CheckOf(const SlabRecord& record, uint32_t index) const;
  uint64_t CheckOf(const Entry& entry, uint32_t index, uint32_t slot) const;
  void Store(uint32_t index, uint32_t slot, Entry entry);
  std::byte* Half(uint32_t sequence) const;
  // nullopt: the half with this number is not complete.
  std::optional<Metadata> DecodeHalf(uint32_t sequence) const;

  std::byte* memory_;
  Geometry geometry_;
  uint64_t id_;
  uint32_t metadata_sequence_ = 0;
  std::vector<Cut> cuts_;  // [num_slabs]
};

}  // namespace kvstore::tiers
