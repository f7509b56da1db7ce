#include "tiers/slab_ledger.h"

#include <atomic>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/page_checksum.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kMagic = 0x31726764654c564b;  // "KVLedgr1" little-endian
constexpr uint64_t kHeaderBytes = 4096;
constexpr uint64_t kStartsCell = 2048, kMetadataCell = 2056;  // in the header's page
constexpr uint64_t kPlaceFactor = 0x9e3779b97f4a7c15;

enum class EntryState : uint32_t { kReserved = 1, kPage = 2 };

uint64_t RoundUp(uint64_t bytes) { return (bytes + 4095) & ~uint64_t{4095}; }
uint64_t SlotsMax(const SlabLedger::Geometry& g) { return g.slab_bytes / 4096; }

// A number that is changed by one store, so that it is never half there: its low half checks it.
uint64_t Pack(uint32_t number, uint64_t seed) {
  return uint64_t{number} << 32 |
         (kernels::Checksum(&number, sizeof number, seed) & uint64_t{UINT32_MAX});
}
std::optional<uint32_t> Unpack(uint64_t cell, uint64_t seed) {
  const auto number = static_cast<uint32_t>(cell >> 32);
  if (Pack(number, seed) != cell) return std::nullopt;
  return number;
}
uint64_t LoadCell(std::byte* at) {
  return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(at)).load();
}
// Everything that was stored before is there when this is: for the process that comes after us.
void StoreCell(std::byte* at, uint64_t value) {
  std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(at))
      .store(value, std::memory_order_release);
}

}  // namespace

struct SlabLedger::Header {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  BootId boot;
  uint64_t id;
  uint64_t slab_bytes;
  uint32_t num_slabs;
  uint32_t entry_bytes;
  uint64_t metadata_bytes;
  uint64_t check;  // of the above, seed 0
};

struct SlabLedger::SlabRecord {
  uint64_t check;  // of what follows, seeded with its place; 0: no record. Stored last
  uint64_t slab_inode;
  uint64_t generations_inode;
  uint64_t slot_bytes;
  uint32_t id;
  uint32_t has_tenant;
  uint32_t tenant_bytes;
  uint32_t reserved;
  char tenant[kTenantBytesMax];
  char zero[512 - 5 * 8 - 2 * 4 - kTenantBytesMax];
};

struct SlabLedger::Entry {
  uint64_t check;  // as above
  uint64_t epoch;
  uint64_t page_checksum;
  uint32_t num_slices;
  uint32_t slice_bytes;
  uint32_t block_index;
  EntryState state;
  uint64_t zero;
  Fingerprint fingerprint;
  BlockHash hash;
  BlockHash parent;
};

namespace {

struct HalfHeader {
  uint64_t check;  // of sequence, bytes and the records that follow
  uint64_t sequence;
  uint64_t bytes;
};
struct MetadataRecord {
  uint32_t key_bytes;
  uint32_t value_bytes;
};

}  // namespace

uint64_t SlabLedger::BytesFor(const Geometry& g) {
  return kHeaderBytes + RoundUp(uint64_t{g.num_slabs} * sizeof(SlabRecord)) + 2 * g.metadata_bytes +
         RoundUp(uint64_t{g.num_slabs} * SlotsMax(g) * sizeof(Entry));
}

SlabLedger::SlabLedger(std::byte* memory, const Geometry& geometry, uint64_t id)
    : memory_(memory), geometry_(geometry), id_(id), cuts_(geometry.num_slabs) {
  static_assert(sizeof(Header) == 72 && sizeof(SlabRecord) == 512 && sizeof(Entry) == 128);
  static_assert(std::is_trivially_copyable_v<Entry>);
}

SlabLedger SlabLedger::Format(std::byte* memory, const Geometry& g, uint64_t id) {
  SlabLedger ledger(memory, g, id);
  Header header{.magic = 0,
                .version = kSlabLedgerVersion,
                .header_bytes = kHeaderBytes,
                .boot = g.boot,
                .id = id,
                .slab_bytes = g.slab_bytes,
                .num_slabs = g.num_slabs,
                .entry_bytes = sizeof(Entry),
                .metadata_bytes = g.metadata_bytes,
                .check = 0};
  header.magic = kMagic;
  header.check = kernels::Checksum(&header, offsetof(Header, check), 0);
  std::memcpy(memory, &header, sizeof header);
  StoreCell(memory + kStartsCell, Pack(0, id));
  StoreCell(memory + kMetadataCell, Pack(0, id + 1));
  return ledger;
}

absl::StatusOr<SlabLedger> SlabLedger::Attach(std::byte* memory, uint64_t bytes,
                                              const Geometry& g) {
  if (bytes < kHeaderBytes) return absl::DataLossError("the ledger is too short");
  Header header;
  std::memcpy(&header, memory, sizeof header);
  if (header.magic != kMagic) return absl::DataLossError("not a ledger");
  // Other versions may have other headers.
  if (header.version != kSlabLedgerVersion) {
    return absl::FailedPreconditionError(absl::StrCat("its ledger has version ", header.version,
                                                      ", this program knows version ",
                                                      kSlabLedgerVersion));
  }
  if (header.check != kernels::Checksum(&header, offsetof(Header, check), 0) ||
      header.header_bytes != kHeaderBytes || header.entry_bytes != sizeof(Entry)) {
    return absl::DataLossError("the ledger's header is damaged");
  }
  if (header.boot != g.boot)
    return absl::FailedPreconditionError("it is of another boot of the machine");
  if (header.slab_bytes != g.slab_bytes || header.num_slabs != g.num_slabs ||
      header.metadata_bytes != g.metadata_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("it has ", header.num_slabs, " slabs of ",
                                                      header.slab_bytes,
                                                      " bytes, and tier.dram.bytes "
                                                      "asks for ",
                                                      g.num_slabs, " of ", g.slab_bytes));
  }
  if (bytes != BytesFor(g)) return absl::DataLossError("the ledger has a wrong size");
  SlabLedger ledger(memory, g, header.id);
  const std::optional<uint32_t> sequence = Unpack(LoadCell(memory + kMetadataCell), header.id + 1);
  // The half that the cell names is complete: otherwise a clear that was acknowledged might be
  // forgotten.
  if (!sequence.has_value()) return absl::DataLossError("the ledger's metadata is damaged");
  ledger.metadata_sequence_ = *sequence;
  if (*sequence > 0 && !ledger.DecodeHalf(*sequence).has_value())
    return absl::DataLossError("the ledger's metadata is damaged");
  for (uint32_t index = 0; index < g.num_slabs; ++index) {
    if (const auto slab = ledger.ReadSlab(index))
      ledger.cuts_[index] = {.id = slab->id, .slot_bytes = slab->slot_bytes};
  }
  return ledger;
}

absl::StatusOr<uint32_t> SlabLedger::CountStart() {
  const std::optional<uint32_t> starts = Unpack(LoadCell(memory_ + kStartsCell), id_);
  if (!starts.has_value()) return absl::DataLossError("the ledger's count of starts is damaged");
  if (*starts >= kStartsMax) return absl::ResourceExhaustedError("the ledger was used too often");
  StoreCell(memory_ + kStartsCell, Pack(*starts + 1, id_));
  return *starts + 1;
}

// --- Slabs

SlabLedger::SlabRecord* SlabLedger::RecordAt(uint32_t index) const {
  return reinterpret_cast<SlabRecord*>(memory_ + kHeaderBytes) + index;
}

uint64_t SlabLedger::CheckOf(const SlabRecord& record, uint32_t index) const {
  const uint64_t check =
      kernels::Checksum(reinterpret_cast<const std::byte*>(&record) + sizeof record.check,
                        sizeof record - sizeof record.check, id_ ^ (index + 1) * kPlaceFactor);
  return check == 0 ? 1 : check;
}

std::optional<SlabLedger::Slab> SlabLedger::ReadSlab(uint32_t index) const {
  SlabRecord record;
  std::memcpy(&record, RecordAt(index), sizeof record);
  if (record.check == 0 || record.check != CheckOf(record, index)) return std::nullopt;
  if (record.tenant_bytes > kTenantBytesMax || record.slot_bytes % 4096 != 0 ||
      record.slot_bytes > geometry_.slab_bytes) {
    return std::nullopt;
  }
  Slab slab{.id = record.id,
            .mark = {record.slab_inode, record.generations_inode},
            .slot_bytes = record.slot_bytes,
            .tenant = std::nullopt};
  if (record.has_tenant != 0) slab.tenant.emplace(record.tenant, record.tenant_bytes);
  return slab;
}

absl::Status SlabLedger::WriteSlab(uint32_t index, const Slab& slab) {
  if (ReadSlab(index) == slab) return absl::OkStatus();
  const std::string tenant = slab.tenant.value_or("");
  if (tenant.size() > kTenantBytesMax)
    return absl::InvalidArgumentError("the tenant's name is longer than 256 bytes");
  SlabRecord record{.check = 0,
                    .slab_inode = slab.mark.slab,
                    .generations_inode = slab.mark.generations,
                    .slot_bytes = slab.slot_bytes,
                    .id = slab.id,
                    .has_tenant = slab.tenant.has_value(),
                    .tenant_bytes = static_cast<uint32_t>(tenant.size()),
                    .reserved = 0,
                    .tenant = {},
                    .zero = {}};
  std::memcpy(record.tenant, tenant.data(), tenant.size());
  auto* const at = reinterpret_cast<std::byte*>(RecordAt(index));
  StoreCell(at, 0);
  std::atomic_thread_fence(std::memory_order_release);
  std::memcpy(at + sizeof record.check, reinterpret_cast<std::byte*>(&record) + sizeof record.check,
              sizeof record - sizeof record.check);
  StoreCell(at, CheckOf(record, index));
  cuts_[index] = {.id = slab.id, .slot_bytes = slab.slot_bytes};
  return absl::OkStatus();
}

// --- Slots

uint32_t SlabLedger::slots_of(uint32_t index) const {
  const uint64_t slot_bytes = cuts_[index].slot_bytes;
  return slot_bytes == 0 ? 0 : static_cast<uint32_t>(geometry_.slab_bytes / slot_bytes);
}

SlabLedger::Entry* SlabLedger::EntryAt(uint32_t index, uint32_t slot) const {
  std::byte* const entries = memory_ + kHeaderBytes +
                             RoundUp(uint64_t{geometry_.num_slabs} * sizeof(SlabRecord)) +
                             2 * geometry_.metadata_bytes;
  return reinterpret_cast<Entry*>(entries) + index * SlotsMax(geometry_) + slot;
}

// An entry is right for its place, memory and cut only.
uint64_t SlabLedger::CheckOf(const Entry& entry, uint32_t index, uint32_t slot) const {
  const Cut& cut = cuts_[index];
  const uint64_t place[] = {id_, uint64_t{index} << 32 | slot, uint64_t{cut.id}, cut.slot_bytes};
  const uint64_t check = kernels::Checksum(
      reinterpret_cast<const std::byte*>(&entry) + sizeof entry.check,
      sizeof entry - sizeof entry.check, kernels::Checksum(place, sizeof place, kMagic));
  return check == 0 ? 1 : check;
}

void SlabLedger::Store(uint32_t index, uint32_t slot, Entry entry) {
  auto* const at = reinterpret_cast<std::byte*>(EntryAt(index, slot));
  StoreCell(at, 0);
  std::atomic_thread_fence(std::memory_order_release);
  std::memcpy(at + sizeof entry.check, reinterpret_cast<std::byte*>(&entry) + sizeof entry.check,
              sizeof entry - sizeof entry.check);
  StoreCell(at, CheckOf(entry, index, slot));
}

void SlabLedger::NoteReserved(uint32_t index, uint32_t slot) {
  Entry entry{};
  entry.state = EntryState::kReserved;
  Store(index, slot, entry);
}

void SlabLedger::NotePage(uint32_t index, uint32_t slot, const PageIdentity& identity) {
  Store(index, slot,
        {.check = 0,
         .epoch = identity.epoch,
         .page_checksum = identity.page_checksum,
         .num_slices = identity.shape.num_slices,
         .slice_bytes = identity.shape.slice_bytes,
         .block_index = identity.block_index,
         .state = EntryState::kPage,
         .zero = 0,
         .fingerprint = identity.fingerprint,
         .hash = identity.hash,
         .parent = identity.parent});
}

void SlabLedger::NoteFree(uint32_t index, uint32_t slot) {
  StoreCell(reinterpret_cast<std::byte*>(EntryAt(index, slot)), 0);
}

SlabLedger::Slot SlabLedger::ReadSlot(uint32_t index, uint32_t slot) const {
  Entry entry;
  std::memcpy(&entry, EntryAt(index, slot), sizeof entry);
  if (entry.check == 0) return {.state = SlotState::kFree, .identity = {}};
  Slot result{.state = SlotState::kDamaged, .identity = {}};
  if (entry.check != CheckOf(entry, index, slot)) return result;
  if (entry.state == EntryState::kReserved) {
    result.state = SlotState::kReserved;
  } else if (entry.state == EntryState::kPage) {
    result.identity = {.shape = {entry.num_slices, entry.slice_bytes},
                       .fingerprint = entry.fingerprint,
                       .epoch = entry.epoch,
                       .hash = entry.hash,
                       .parent = entry.parent,
                       .block_index = entry.block_index,
                       .page_checksum = entry.page_checksum};
    if (result.identity.shape.slot_bytes() == cuts_[index].slot_bytes)
      result.state = SlotState::kPage;
  }
  return result;
}

// --- Metadata

std::byte* SlabLedger::Half(uint32_t sequence) const {
  return memory_ + kHeaderBytes + RoundUp(uint64_t{geometry_.num_slabs} * sizeof(SlabRecord)) +
         (sequence % 2) * geometry_.metadata_bytes;
}

std::optional<SlabLedger::Metadata> SlabLedger::DecodeHalf(uint32_t sequence) const {
  const std::byte* const half = Half(sequence);
  HalfHeader header;
  std::memcpy(&header, half, sizeof header);
  if (header.sequence != sequence || header.bytes > geometry_.metadata_bytes - sizeof header)
    return std::nullopt;
  const uint64_t check = kernels::Checksum(half + sizeof header.check,
                                           sizeof header - sizeof header.check + header.bytes, id_);
  if (check != header.check) return std::nullopt;
  Metadata metadata;
  const char* at = reinterpret_cast<const char*>(half) + sizeof header;
  for (uint64_t left = header.bytes; left > 0;) {
    MetadataRecord record;
    if (left < sizeof record) return std::nullopt;
    std::memcpy(&record, at, sizeof record);
    at += sizeof record;
    left -= sizeof record;
    if (uint64_t{record.key_bytes} + record.value_bytes > left) return std::nullopt;
    metadata[std::string(at, record.key_bytes)] =
        std::string(at + record.key_bytes, record.value_bytes);
    at += uint64_t{record.key_bytes} + record.value_bytes;
    left -= uint64_t{record.key_bytes} + record.value_bytes;
  }
  return metadata;
}

SlabLedger::Metadata SlabLedger::LoadMetadata() const {
  if (metadata_sequence_ == 0) return {};
  return DecodeHalf(metadata_sequence_).value_or(Metadata{});
}

absl::Status SlabLedger::SaveMetadata(const Metadata& metadata) {
  std::string records;
  for (const auto& [key, value] : metadata) {
    const MetadataRecord record{static_cast<uint32_t>(key.size()),
                                static_cast<uint32_t>(value.size())};
    records.append(reinterpret_cast<const char*>(&record), sizeof record);
    records += key;
    records += value;
  }
  if (records.size() > geometry_.metadata_bytes - sizeof(HalfHeader)) {
    return absl::ResourceExhaustedError(absl::StrCat("namespaces and quotas take ", records.size(),
                                                     " bytes, and the ledger has ",
                                                     geometry_.metadata_bytes));
  }
  const uint32_t sequence = metadata_sequence_ + 1;
  std::byte* const half = Half(sequence);
  HalfHeader header{.check = 0, .sequence = sequence, .bytes = records.size()};
  std::memcpy(half + sizeof header, records.data(), records.size());
  std::memcpy(half, &header, sizeof header);
  header.check = kernels::Checksum(half + sizeof header.check,
                                   sizeof header - sizeof header.check + records.size(), id_);
  std::memcpy(half, &header, sizeof header.check);
  StoreCell(memory_ + kMetadataCell, Pack(sequence, id_ + 1));
  metadata_sequence_ = sequence;
  return absl::OkStatus();
}

}  // namespace kvstore::tiers
