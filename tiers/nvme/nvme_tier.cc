#include "tiers/nvme/nvme_tier.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/slot_record.h"
#include "tiers/nvme/tail_buffers.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {
namespace {

using transfer::FileDirection;
using transfer::FileMover;
using transfer::FileResult;

constexpr absl::Duration kProbeEvery = absl::Seconds(3);
constexpr size_t kMetadataKeyBytesMax = 256;
constexpr size_t kMetadataValueBytesMax = 64 << 10;
constexpr uint64_t kDirectAlignment = 4096;

bool IsFull(int error_number) {
  return error_number == ENOSPC || error_number == EDQUOT || error_number == EROFS;
}

}  // namespace

NvmeTier::NvmeTier(NvmeOptions options, NvmeLayout layout, uint64_t generation_base, Executor& core,
                   const Clock& clock)
    : options_(std::move(options)),
      layout_(layout),
      generation_base_(generation_base),
      core_(core),
      clock_(clock),
      allocator_({.num_slabs = layout.extents_per_dir * static_cast<uint32_t>(options_.dirs.size()),
                  .slab_bytes = layout.extent_bytes,
                  .generation_base = generation_base,
                  .on_assign = {},
                  .on_free = [this](uint32_t slab) { notes_.Drop(slab); },
                  .assign_cost = {}}),
      notes_(layout.extents_per_dir * static_cast<uint32_t>(options_.dirs.size())),
      tails_(std::make_shared<TailBuffers>()),
      completions_(std::make_shared<CompletionQueue>(core)) {
  stats_.capacity_bytes = allocator_.capacity_bytes();
}

NvmeTier::~NvmeTier() {
  Stop();
  *is_alive_ = false;
}

void NvmeTier::RegisterMemory(MutableRegion region) {
  for (Device& device : devices_) device.mover->RegisterMemory(region);
}

void NvmeTier::UnregisterMemory(MutableRegion region) {
  for (Device& device : devices_) device.mover->UnregisterMemory(region);
}

absl::Status NvmeTier::OpenPool(PoolId pool, const PoolSpec& spec) {
  return allocator_.OpenPool(pool, spec.slot_bytes);
}

absl::StatusOr<PageId> NvmeTier::Reserve(PoolId pool) {
  if (is_stopped_) return absl::UnavailableError("nvme: stopped");
  if (state_ != TierState::kServing) {
    return absl::UnavailableError(absl::StrCat("nvme: ", read_only_reason_));
  }
  if (recovery_state_ != Recovery::kFinished) {
    return absl::UnavailableError("nvme: recovery is not finished, free slots are not known yet");
  }
  if (allocator_.used_pages() >= layout_.records_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("nvme: the index is full (", layout_.records_max, " records in ",
                     layout_.index_bytes, " bytes); a larger index_bytes takes more"));
  }
  return allocator_.Reserve(pool);
}

void NvmeTier::ForgetRecord(PageId page) {
  RecordKey key;
  // Queued before the slot can be handed out again; the index keeps the order.
  if (notes_.Take(page, key)) index_->Delete(EncodeRecordKey(key));
}

void NvmeTier::Release(PageId page) {
  ForgetRecord(page);
  allocator_.Release(page);
}

void NvmeTier::Quarantine(PageId page) {
  ForgetRecord(page);
  allocator_.Quarantine(page);
}

NvmeTier::Place NvmeTier::PlaceOf(PageId page) {
  const auto num_dirs = static_cast<uint32_t>(devices_.size());
  return {&devices_[page.slab % num_dirs],
          page.slab / num_dirs * layout_.extent_bytes + allocator_.OffsetInSlab(page)};
}

absl::Status NvmeTier::CheckTransfer(PageId page, const PageIdentity& identity,
                                     const std::byte* memory, size_t bytes) const {
  if (is_stopped_) return absl::UnavailableError("nvme: stopped");
  if (!allocator_.IsCurrent(page)) {
    return absl::FailedPreconditionError("nvme: the page is not reserved");
  }
  const uint64_t slot_bytes = allocator_.SlotBytes(page.slab);
  if (bytes != slot_bytes || identity.shape.slot_bytes() != slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("nvme: ", bytes, " bytes for a slot of ",
                                                   slot_bytes, ", the page's shape wants ",
                                                   identity.shape.slot_bytes()));
  }
  if (reinterpret_cast<uintptr_t>(memory) % kDirectAlignment != 0) {
    return absl::InvalidArgumentError("nvme: memory is not aligned to 4096 bytes");
  }
  if (stats_.in_flight >= options_.inflight_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("nvme: ", options_.inflight_max, " operations are in flight"));
  }
  return absl::OkStatus();
}

void NvmeTier::Fail(Done done, absl::Status status) {
  completions_->Post(
      [done = std::move(done), status = std::move(status)]() mutable { done(std::move(status)); });
}

void NvmeTier::Write(PageId page, const PageIdentity& identity, ConstRegion src,
                     absl::Time deadline, Done done) {
  absl::Status status = CheckTransfer(page, identity, src.data, src.bytes);
  if (status.ok() && state_ != TierState::kServing) {
    status = absl::UnavailableError(absl::StrCat("nvme: ", read_only_reason_));
  }
  if (!status.ok()) return Fail(std::move(done), std::move(status));

  const Place place = PlaceOf(page);
  const uint64_t generation = page.generation;
  // From here on, not from success on: whatever reaches the index goes at Release().
  notes_.Set(page, identity, generation);
  ++stats_.in_flight;
  auto tail = std::make_shared<TailBuffers::Lease>(tails_->Take());
  auto* memory = const_cast<std::byte*>(src.data);  // a write only reads it
  const uint64_t tail_offset = TailOffset(identity.shape);
  const MutableRegion tail_region{tail->data(), TailBytes(identity.shape)};
  transfer::FileOperation operation{.direction = FileDirection::kWrite,
                                    .file = place.device->file,
                                    .offset = place.offset,
                                    .buffer = {memory, tail_offset},
                                    .tail = tail_region,
                                    .deadline = deadline};
  if (tail_offset == 0) {  // a page below 4 KiB is all tail
    operation.buffer = tail_region;
    operation.tail = {};
  }
  operation.prepare = [tail_memory = tail->data(), memory, identity, generation] {
    return MakeTail(tail_memory, memory, identity, generation);
  };
  std::string key = EncodeRecordKey(
      {identity.fingerprint, identity.epoch, identity.block_index, page.slab, page.slot});
  operation.done = [this, tail, key = std::move(key),
                    value = EncodeRecordValue(identity, generation), bytes = src.bytes, memory,
                    identity, done = std::move(done)](FileResult result) mutable {
    tail.reset();
    auto finish = [this, bytes, done = std::move(done)](FileResult outcome) mutable {
      completions_->Post(
          [this, bytes, outcome = std::move(outcome), done = std::move(done)]() mutable {
            FinishWrite(bytes, std::move(outcome), std::move(done));
          });
    };
    if (!result.status.ok()) return finish(std::move(result));
    // The slices are hashed on the index thread, so that the progress thread keeps the device busy.
    // A page that fails gets no record.
    auto check = [memory, identity] { return transfer::VerifySlot(memory, identity); };
    index_->Put(std::move(key), std::move(value), std::move(check),
                [this, finish = std::move(finish)](absl::Status put) mutable {
                  if (!put.ok() && !absl::IsDataLoss(put)) {
                    completions_->Post([this, put] { EnterReadOnly(std::string(put.message())); });
                  }
                  finish({std::move(put), 0});
                });
  };
  // Cannot be refused: each mover takes inflight_max operations, counted above over all of them.
  status = place.device->mover->Submit(std::move(operation));
  if (!status.ok()) {
    std::fprintf(stderr, "nvme: %s\n", std::string(status.message()).c_str());
    std::abort();
  }
}

void NvmeTier::FinishWrite(uint64_t bytes, FileResult result, Done done) {
  --stats_.in_flight;
  if (result.status.ok()) {
    stats_.write_bytes += bytes;
  } else if (absl::IsDataLoss(result.status)) {
    ++stats_.checksum_errors;
  } else {
    ++stats_.write_errors;
  }
  if (IsFull(result.error_number)) EnterReadOnly(std::string(result.status.message()));
  done(std::move(result.status));
}

void NvmeTier::Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    Done done) {
  absl::Status status = CheckTransfer(page, expect, dst.data, dst.bytes);
  if (status.ok() && !notes_.Has(page)) {
    status = absl::FailedPreconditionError("nvme: the page was not written");
  }
  if (!status.ok()) return Fail(std::move(done), std::move(status));

  const Place place = PlaceOf(page);
  ++stats_.in_flight;
  transfer::FileOperation operation{.direction = FileDirection::kRead,
                                    .file = place.device->file,
                                    .offset = place.offset,
                                    .buffer = dst,
                                    .deadline = deadline};
  operation.check = [data = dst.data, expect, generation = notes_.disk_generation(page)] {
    return AcceptSlot(data, expect, generation);
  };
  operation.done = [this, bytes = dst.bytes, done = std::move(done)](FileResult result) mutable {
    completions_->Post([this, bytes, result = std::move(result), done = std::move(done)]() mutable {
      FinishRead(bytes, std::move(result), std::move(done));
    });
  };
  status = place.device->mover->Submit(std::move(operation));
  if (!status.ok()) {
    std::fprintf(stderr, "nvme: %s\n", std::string(status.message()).c_str());
    std::abort();
  }
}

void NvmeTier::FinishRead(uint64_t bytes, FileResult result, Done done) {
  --stats_.in_flight;
  if (result.status.ok()) {
    stats_.read_bytes += bytes;
  } else if (absl::IsDataLoss(result.status)) {
    ++stats_.checksum_errors;
  } else {
    ++stats_.read_errors;
  }
  done(std::move(result.status));
}

TierStats NvmeTier::stats() const {
  TierStats stats = stats_;
  stats.used_bytes = allocator_.used_bytes();
  stats.used_pages = allocator_.used_pages();
  stats.quarantined_pages = allocator_.quarantined_pages();
  return stats;
}

std::string NvmeTier::backend_name() const {
  return devices_.front().mover->backend() == FileMover::BackendKind::kIoUring ? "io_uring"
                                                                               : "pread/pwrite";
}

std::string NvmeTier::degraded() const {
  std::string text;
  const auto add = [&text](const std::string& part) {
    if (!part.empty()) absl::StrAppend(&text, text.empty() ? "" : "; ", part);
  };
  if (state_ != TierState::kServing) {
    add(absl::StrCat("read-only: ", read_only_reason_, "; trying again every ",
                     absl::ToInt64Seconds(kProbeEvery), " s"));
  }
  add(start_note_);
  add(index_->note());
  add(devices_.front().mover->degraded());
  return text;
}

absl::Status NvmeTier::CheckInvariants() const {
  RETURN_IF_ERROR(allocator_.CheckInvariants());
  if (notes_.records() > allocator_.used_pages()) {
    return absl::InternalError(absl::StrCat("nvme: ", notes_.records(), " records for ",
                                            allocator_.used_pages(), " used slots"));
  }
  return absl::OkStatus();
}

void NvmeTier::SaveMetadata(std::string key, std::string value, Done done) {
  if (is_stopped_) return Fail(std::move(done), absl::UnavailableError("nvme: stopped"));
  if (key.empty() || key.size() > kMetadataKeyBytesMax || value.size() > kMetadataValueBytesMax) {
    return Fail(std::move(done),
                absl::InvalidArgumentError(absl::StrCat(
                    "nvme: metadata of ", key.size(), " and ", value.size(), " bytes; at most ",
                    kMetadataKeyBytesMax, " and ", kMetadataValueBytesMax)));
  }
  index_->PutMetadata(std::move(key), std::move(value),
                      [this, done = std::move(done)](absl::Status status) mutable {
                        completions_->Post([this, status, done = std::move(done)]() mutable {
                          if (!status.ok()) EnterReadOnly(std::string(status.message()));
                          done(status);
                        });
                      });
}

void NvmeTier::EnterReadOnly(std::string reason) {
  if (state_ != TierState::kServing || is_stopped_) return;
  state_ = TierState::kReadOnly;
  read_only_reason_ = std::move(reason);
  ScheduleProbe();
}

void NvmeTier::ScheduleProbe() {
  core_.PostAt(clock_.Now() + kProbeEvery, [this, alive = is_alive_] {
    if (!*alive || is_stopped_) return;
    index_->Probe([this](absl::Status status) {
      // Also on the index thread: it may block, and nothing else has to happen meanwhile.
      for (Device& device : devices_) {
        if (status.ok()) status = device.directory->ProbeWrite();
      }
      completions_->Post([this, status] { FinishProbe(status); });
    });
  });
}

void NvmeTier::FinishProbe(absl::Status status) {
  if (is_stopped_) return;
  if (!status.ok()) {
    read_only_reason_ = std::string(status.message());
    return ScheduleProbe();
  }
  state_ = TierState::kServing;
  read_only_reason_.clear();
}

void NvmeTier::Stop() {
  if (std::exchange(is_stopped_, true)) return;
  bool is_synced = true;
  for (Device& device : devices_) {
    device.mover->Stop();
    is_synced = device.directory->SyncPages().ok() && is_synced;
  }
  // A failed fsync may have lost any page written in this run, and asking again would not tell
  // which.
  if (index_ != nullptr) {
    if (!is_synced) index_->DiscardFrom(generation_base_);
    (void)index_->Stop();
  }
  completions_->Drain();
}

}  // namespace kvstore::tiers
