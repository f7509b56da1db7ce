#include "tiers/dram/kept_memory.h"

#include <sys/random.h>
#include <sys/stat.h>

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {
namespace {

// Of kept descriptors: ours begin like this. Short, because thousands of them travel in one
// environment variable.
constexpr char kPrefix[] = "kv.";
constexpr char kLedgerName[] = "kv.ledger";
std::string SlabName(uint32_t id) { return absl::StrCat("kv.s", id); }
std::string GenerationsName(uint32_t id) { return absl::StrCat("kv.g", id); }

// 2^32 uses of a slot in each of 65,535 starts: generations have 48 bits in the index.
constexpr int kGenerationBitsPerStart = 32;

bool IsOurs(const std::string& name) { return absl::StartsWith(name, kPrefix); }

}  // namespace

absl::StatusOr<std::unique_ptr<KeptMemory>> KeptMemory::Open(const Options& options,
                                                             DescriptorKeeper& keeper) {
  std::unique_ptr<KeptMemory> kept(new KeptMemory(options, keeper));
  RETURN_IF_ERROR(kept->OpenLedger());
  kept->RestoreSlabs();
  return kept;
}

absl::Status KeptMemory::CountStart() {
  ASSIGN_OR_RETURN(const uint32_t starts, ledger_->CountStart());
  generation_base_ = uint64_t{starts} << kGenerationBitsPerStart;
  return absl::OkStatus();
}

void KeptMemory::ForgetAll(DescriptorKeeper& keeper) {
  for (const std::string& name : keeper.Names()) {
    if (IsOurs(name)) keeper.Forget(name);
  }
}

absl::Status KeptMemory::OpenLedger() {
  const absl::Status attached = Attach();
  if (attached.ok()) return attached;
  if (!absl::IsNotFound(attached)) why_cold_ = std::string(attached.message());
  ledger_.reset();
  memory_.reset();
  ForgetAll(keeper_);
  return Format();
}

// NotFound: there is none.
absl::Status KeptMemory::Attach() {
  ASSIGN_OR_RETURN(UniqueFd fd, keeper_.Take(kLedgerName));
  struct stat status {};
  if (fstat(fd.get(), &status) != 0) return absl::DataLossError("the ledger cannot be read");
  const auto bytes = static_cast<uint64_t>(status.st_size);
  ASSIGN_OR_RETURN(transfer::SealedMemory memory,
                   transfer::SealedMemory::Adopt(std::move(fd), bytes));
  memory_.emplace(std::move(memory));
  ASSIGN_OR_RETURN(SlabLedger ledger,
                   SlabLedger::Attach(memory_->data(), bytes, options_.geometry));
  ledger_.emplace(std::move(ledger));
  return CountStart();
}

absl::Status KeptMemory::Format() {
  uint64_t id = 0;
  if (getrandom(&id, sizeof id, 0) != sizeof id)
    return absl::UnavailableError("no random bytes for the ledger's id");
  ASSIGN_OR_RETURN(
      transfer::SealedMemory memory,
      transfer::SealedMemory::Create(
          {.name = "kvstore-ledger", .bytes = SlabLedger::BytesFor(options_.geometry)}));
  memory_.emplace(std::move(memory));
  ledger_.emplace(SlabLedger::Format(memory_->data(), options_.geometry, id));
  RETURN_IF_ERROR(CountStart());
  return keeper_.Keep(kLedgerName, memory_->descriptor());
}

void KeptMemory::RestoreSlabs() {
  const uint32_t num_slabs = options_.geometry.num_slabs;
  restored_.resize(num_slabs);
  is_restored_.assign(num_slabs, false);
  absl::flat_hash_set<std::string> used = {kLedgerName};
  absl::flat_hash_set<uint32_t> ids;
  for (uint32_t index = 0; index < num_slabs; ++index) {
    const std::optional<SlabLedger::Slab> slab = ledger_->ReadSlab(index);
    if (!slab.has_value() || !ids.insert(slab->id).second) continue;
    restored_[index].id = slab->id;  // also of one that begins anew: ids do not come back
    absl::StatusOr<RestoredSlab> restored = RestoreSlab(*slab);
    if (!restored.ok()) {
      for (uint32_t slot = 0; slot < ledger_->slots_of(index); ++slot)
        ledger_->NoteFree(index, slot);
      continue;
    }
    // Whoever still reads for a client of the dead process is told that its uses are over.
    restored->memory->MoveGenerationsTo(generation_base_);
    restored_[index] = *std::move(restored);
    is_restored_[index] = true;
    used.insert(SlabName(slab->id));
    used.insert(GenerationsName(slab->id));
  }
  for (const std::string& name : keeper_.Names()) {
    if (IsOurs(name) && !used.contains(name)) keeper_.Forget(name);
  }
}

absl::StatusOr<RestoredSlab> KeptMemory::RestoreSlab(const SlabLedger::Slab& slab) {
  ASSIGN_OR_RETURN(UniqueFd memory, keeper_.Take(SlabName(slab.id)));
  ASSIGN_OR_RETURN(UniqueFd generations, keeper_.Take(GenerationsName(slab.id)));
  ASSIGN_OR_RETURN(std::unique_ptr<HostSlabMemory> adopted,
                   HostSlabMemory::Adopt(std::move(memory), std::move(generations),
                                         options_.geometry.slab_bytes, options_.locking));
  if (adopted->mark() != slab.mark)
    return absl::DataLossError(absl::StrCat("slab ", slab.id, " is not the memory that it was"));
  return RestoredSlab{.id = slab.id, .memory = std::move(adopted), .tenant = slab.tenant};
}

absl::Status KeptMemory::Keep(uint32_t slab_id, const SlabMemory& memory) {
  const auto& host = static_cast<const HostSlabMemory&>(memory);
  RETURN_IF_ERROR(keeper_.Keep(SlabName(slab_id), host.slab_descriptor()));
  return keeper_.Keep(GenerationsName(slab_id), host.generations_descriptor());
}

void KeptMemory::Forget(uint32_t slab_id) {
  keeper_.Forget(SlabName(slab_id));
  keeper_.Forget(GenerationsName(slab_id));
}

}  // namespace kvstore::tiers
