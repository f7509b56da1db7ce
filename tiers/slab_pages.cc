#include "tiers/slab_pages.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::tiers {
namespace {

// 20 ms with 4 KiB pages: the longest that freeing memory, or Stop(), waits for preparation.
constexpr uint64_t kPieceBytes = uint64_t{16} << 20;
constexpr size_t kBackgroundTasksMax = 1024;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSlabsMax = uint64_t{1} << 20;  // each takes two descriptors

void Tell(const std::function<void(MutableRegion)>& hook, const SlabMemory& memory) {
  if (hook && memory.host_data() != nullptr) hook({memory.host_data(), memory.bytes()});
}

}  // namespace

uint64_t ChooseSlabBytes(uint64_t bytes) {
  return std::clamp(bytes / 8 / (2 * kMiB) * (2 * kMiB), 2 * kMiB, 256 * kMiB);
}

absl::Status ValidateSlabs(uint64_t bytes, uint64_t slab_bytes) {
  if (slab_bytes == 0 || slab_bytes % 4096 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("slab_bytes is ", slab_bytes, ", valid: multiples of 4096 above 0"));
  }
  if (bytes < slab_bytes || bytes / slab_bytes > kSlabsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes is ", bytes, ", valid: 1 to ", kSlabsMax, " slabs of ", slab_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SlabPages>> SlabPages::Create(Options options, const Clock& clock) {
  std::unique_ptr<SlabPages> pages(new SlabPages(std::move(options), clock));
  for (uint32_t index = 0; index < pages->slabs_.size(); ++index) {
    RETURN_IF_ERROR(pages->OpenSlab(index));
    if (pages->options_.prepare == Prepare::kAtStart)
      pages->EnqueuePreparation(pages->slabs_[index]);
  }
  return pages;
}

absl::Status SlabPages::OpenSlab(uint32_t index) {
  Slab& slab = slabs_[index];
  RestoredSlab* const restored = options_.restored.empty() ? nullptr : &options_.restored[index];
  if (restored != nullptr && restored->memory != nullptr) {
    slab = {.id = restored->id,
            .memory = std::move(restored->memory),
            .tenant = std::move(restored->tenant)};
    if (slab.tenant.has_value()) {
      absl::MutexLock lock(&mutex_);
      exported_[slab.id] = {slab.memory, *slab.tenant};
    }
  } else {
    ASSIGN_OR_RETURN(slab.memory, options_.make_slab());
    slab.id = next_id_++;
    RETURN_IF_ERROR(NoteSlab(index, 0));
    if (options_.keeper != nullptr) NoteDegraded(options_.keeper->Keep(slab.id, *slab.memory));
  }
  index_of_[slab.id] = index;
  return absl::OkStatus();
}

absl::Status SlabPages::NoteSlab(uint32_t index, uint64_t slot_bytes) {
  if (options_.ledger == nullptr) return absl::OkStatus();
  const Slab& slab = slabs_[index];
  return options_.ledger->WriteSlab(index, {.id = slab.id,
                                            .mark = slab.memory->mark(),
                                            .slot_bytes = slot_bytes,
                                            .tenant = slab.tenant});
}

// The first reason stands.
void SlabPages::NoteDegraded(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (!status.ok() && degraded_.empty()) degraded_ = std::string(StdView(status.message()));
}

SlabPages::SlabPages(Options options, const Clock& clock)
    : options_(std::move(options)),
      slabs_(options_.num_slabs),
      slots_(
          {.num_slabs = options_.num_slabs,
           .slab_bytes = options_.slab_bytes,
           .generation_base = options_.generation_base,
           .on_assign = [this](uint32_t index, PoolId pool) { return OnAssign(index, pool); },
           .assign_cost = [this](uint32_t index, PoolId pool) { return AssignCost(index, pool); }}),
      background_(options_.name, kBackgroundTasksMax, clock) {
  for (const RestoredSlab& restored : options_.restored)
    next_id_ = std::max(next_id_, restored.id + 1);
}

SlabPages::~SlabPages() { Stop(); }

absl::Status SlabPages::OpenPool(PoolId pool, const PoolSpec& spec) {
  const auto it = tenant_of_.find(pool);
  if (it != tenant_of_.end() && it->second != spec.tenant) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool ", pool.value(), " is open for another tenant"));
  }
  RETURN_IF_ERROR(slots_.OpenPool(pool, spec.slot_bytes));
  tenant_of_.try_emplace(pool, spec.tenant);
  return absl::OkStatus();
}

absl::StatusOr<PageId> SlabPages::Reserve(PoolId pool) {
  ASSIGN_OR_RETURN(PageId page, slots_.Reserve(pool));
  Slab& slab = slabs_[page.slab];
  if (options_.ledger != nullptr) options_.ledger->NoteReserved(page.slab, page.slot);
  slab.memory->StoreGeneration(slots_.OffsetInSlab(page), page.generation);
  page.slab = slab.id;
  return page;
}

void SlabPages::NotePublished(PageId page, const PageIdentity& identity) {
  const std::optional<PageId> slot = ToSlots(page);
  if (slot.has_value() && options_.ledger != nullptr)
    options_.ledger->NotePage(slot->slab, slot->slot, identity);
}

absl::Status SlabPages::Withhold(uint32_t index, uint64_t slot_bytes, uint32_t slot) {
  return slots_.Withhold(index, slot_bytes, slot);
}

absl::StatusOr<PageId> SlabPages::Claim(PoolId pool, uint32_t index, uint32_t slot) {
  const auto tenant = tenant_of_.find(pool);
  if (tenant == tenant_of_.end())
    return absl::NotFoundError(absl::StrCat("pool ", pool.value(), " is not open"));
  Slab& slab = slabs_[index];
  if (slab.tenant != tenant->second) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.id, " is another tenant's memory"));
  }
  ASSIGN_OR_RETURN(PageId page, slots_.ReserveAt(pool, index, slot));
  slab.memory->StoreGeneration(slots_.OffsetInSlab(page), page.generation);
  page.slab = slab.id;
  return page;
}

void SlabPages::Readmit(uint32_t index, uint32_t slot) {
  if (options_.ledger != nullptr) options_.ledger->NoteFree(index, slot);
  slots_.Readmit(index, slot);
}

// Whoever reads the slot sees that its use is over, before it can begin another one.
void SlabPages::EndUse(PageId slot) {
  if (options_.ledger != nullptr) options_.ledger->NoteFree(slot.slab, slot.slot);
  slabs_[slot.slab].memory->StoreGeneration(slots_.OffsetInSlab(slot), slot.generation + 1);
}

void SlabPages::Release(PageId page) {
  const std::optional<PageId> slot = ToSlots(page);
  if (slot.has_value()) EndUse(*slot);
  // Aborts when the page is not current.
  slots_.Release(slot.value_or(PageId{}));
}

void SlabPages::Quarantine(PageId page) {
  const std::optional<PageId> slot = ToSlots(page);
  if (slot.has_value()) EndUse(*slot);
  slots_.Quarantine(slot.value_or(PageId{}));
}

void SlabPages::CloseSlab(uint32_t slab_id) {
  if (const auto it = index_of_.find(slab_id); it != index_of_.end()) slots_.Close(it->second);
}

void SlabPages::ReopenSlab(uint32_t slab_id) {
  if (const auto it = index_of_.find(slab_id); it != index_of_.end()) slots_.Reopen(it->second);
}

std::optional<SlabPlace> SlabPages::Find(PageId page) const {
  const std::optional<PageId> slot = ToSlots(page);
  if (!slot.has_value()) return std::nullopt;
  return SlabPlace{slabs_[slot->slab].memory, slots_.OffsetInSlab(*slot),
                   slots_.SlotBytes(slot->slab)};
}

absl::StatusOr<SlabExport> SlabPages::Export(uint32_t slab_id, std::string_view tenant,
                                             MemoryAccess access) const {
  std::shared_ptr<const SlabMemory> memory;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = exported_.find(slab_id);
    if (it != exported_.end() && it->second.tenant == tenant) memory = it->second.memory;
  }
  // If the slab changes tenants from here on, this memory does not: the caller gets a mapping of
  // memory given back.
  if (memory == nullptr) return absl::NotFoundError(absl::StrCat("no slab ", slab_id));
  return memory->Export(access);
}

std::string SlabPages::degraded() const {
  absl::MutexLock lock(&mutex_);
  return degraded_;
}

absl::Status SlabPages::OnAssign(uint32_t index, PoolId pool) {
  Slab& slab = slabs_[index];
  const std::string& tenant = tenant_of_.at(pool);
  if (slab.tenant.has_value() && *slab.tenant != tenant) RETURN_IF_ERROR(ReplaceMemory(slab));
  const bool is_given = !slab.tenant.has_value();
  slab.tenant = tenant;
  if (absl::Status noted = NoteSlab(index, slots_.PoolSlotBytes(pool)); !noted.ok()) {
    if (is_given) slab.tenant.reset();
    return noted;
  }
  if (is_given) {
    absl::MutexLock lock(&mutex_);
    exported_[slab.id] = {slab.memory, tenant};
  }
  if (!slab.is_prepared) EnqueuePreparation(slab);
  return absl::OkStatus();
}

uint32_t SlabPages::AssignCost(uint32_t index, PoolId pool) const {
  const Slab& slab = slabs_[index];
  if (!slab.tenant.has_value()) return slab.is_prepared ? 1 : 2;
  return *slab.tenant == tenant_of_.at(pool) ? 0 : 3;
}

absl::Status SlabPages::ReplaceMemory(Slab& slab) {
  if (is_freeing_.load(std::memory_order_acquire)) {
    return absl::ResourceExhaustedError("memory of another tenant is still being freed");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<SlabMemory> fresh, options_.make_slab());
  {
    absl::MutexLock lock(&mutex_);
    exported_.erase(slab.id);
    std::erase_if(to_prepare_, [&slab](const Preparation& p) { return p.memory == slab.memory; });
  }
  is_freeing_.store(true, std::memory_order_relaxed);
  background_.Post([this, old = std::move(slab.memory), id = slab.id]() mutable {
    Tell(options_.hooks.on_going, *old);
    old->Discard();
    old.reset();
    if (options_.keeper != nullptr) options_.keeper->Forget(id);
    is_freeing_.store(false, std::memory_order_release);
  });
  index_of_.erase(slab.id);
  const uint32_t index = static_cast<uint32_t>(&slab - slabs_.data());
  slab = {.id = next_id_++, .memory = std::move(fresh)};
  index_of_[slab.id] = index;
  if (options_.keeper != nullptr) {
    // If we die before: its pages are not found again.
    background_.Post([this, memory = slab.memory, id = slab.id] {
      NoteDegraded(options_.keeper->Keep(id, *memory));
    });
  }
  return absl::OkStatus();
}

std::optional<PageId> SlabPages::ToSlots(PageId page) const {
  const auto it = index_of_.find(page.slab);
  if (it == index_of_.end()) return std::nullopt;
  page.slab = it->second;
  if (!slots_.IsCurrent(page)) return std::nullopt;
  return page;
}

void SlabPages::EnqueuePreparation(Slab& slab) {
  // A slab in use goes first.
  const bool is_urgent = slab.tenant.has_value();
  slab.is_prepared = true;
  {
    absl::MutexLock lock(&mutex_);
    if (is_urgent) {
      to_prepare_.push_front({slab.memory});
    } else {
      to_prepare_.push_back({slab.memory});
    }
    if (std::exchange(is_preparing_, true)) return;
  }
  PostPreparation();
}

void SlabPages::PostPreparation() {
  background_.Post([this] { PreparePiece(); });
}

// One piece a task, so that freeing memory does not wait for all preparation.
void SlabPages::PreparePiece() {
  std::shared_ptr<const SlabMemory> memory;
  uint64_t offset = 0, bytes = 0;
  bool is_last = false;
  {
    absl::MutexLock lock(&mutex_);
    if (to_prepare_.empty() || stopping_.load(std::memory_order_relaxed)) {
      is_preparing_ = false;
      return;
    }
    Preparation& next = to_prepare_.front();
    memory = next.memory;
    offset = next.done_bytes;
    bytes = std::min(kPieceBytes, memory->bytes() - offset);
    next.done_bytes += bytes;
    is_last = next.done_bytes == memory->bytes();
    if (is_last) to_prepare_.pop_front();
  }
  if (absl::Status status = memory->Prepare(offset, bytes); !status.ok()) {
    NoteDegraded(status);  // what failed is paid for at first use
  } else if (is_last) {
    Tell(options_.hooks.on_prepared, *memory);
  }
  PostPreparation();
}

absl::Status SlabPages::CheckInvariants() const {
  RETURN_IF_ERROR(slots_.CheckInvariants());
  if (index_of_.size() != slabs_.size()) return absl::InternalError("slab ids are not unique");
  absl::MutexLock lock(&mutex_);
  size_t with_tenant = 0;
  for (uint32_t index = 0; index < slabs_.size(); ++index) {
    const Slab& slab = slabs_[index];
    const auto id = index_of_.find(slab.id);
    if (id == index_of_.end() || id->second != index || slab.id >= next_id_) {
      return absl::InternalError(absl::StrCat("slab id ", slab.id, " does not lead to its slab"));
    }
    if (slots_.SlotBytes(index) != 0 && !slab.tenant.has_value()) {
      return absl::InternalError(absl::StrCat("slab ", slab.id, " is used without a tenant"));
    }
    if (!slab.tenant.has_value()) continue;
    ++with_tenant;
    const auto exported = exported_.find(slab.id);
    if (exported == exported_.end() || exported->second.memory != slab.memory ||
        exported->second.tenant != *slab.tenant) {
      return absl::InternalError(absl::StrCat("slab ", slab.id, " is exported wrongly"));
    }
  }
  if (with_tenant != exported_.size()) {
    return absl::InternalError("a slab given back is still exported");
  }
  return absl::OkStatus();
}

void SlabPages::Stop() {
  stopping_.store(true, std::memory_order_relaxed);
  background_.Stop();
}

void SlabPages::WaitUntilPrepared() {
  for (bool is_done = false; !is_done;) {
    background_.RunAndWait([] {});
    absl::MutexLock lock(&mutex_);
    is_done = to_prepare_.empty() && !is_preparing_;
  }
}

}  // namespace kvstore::tiers
