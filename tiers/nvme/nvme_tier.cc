#include "tiers/nvme/nvme_tier.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
using transfer::FileOperation;
using transfer::FileResult;

constexpr Breaker::Options kDeviceBreaker{.failures_max = 8, .probe_after = absl::Seconds(1)};
constexpr Breaker::Options kWriteBreaker{.failures_max = 8, .probe_after = absl::Seconds(3)};
constexpr uint64_t kDirectAlignment = 4096;
// Enough to keep a disk of 6 GB/s busy for 10 ms while as much again is being encrypted.
constexpr uint64_t kSlotBuffersBytesMax = uint64_t{128} << 20;

// The device did something: a queue's deadline, or a source that differs, says nothing about it.
bool IsAnswer(const FileResult& result) {
  return result.status.ok() || absl::IsDataLoss(result.status) || result.error_number != 0;
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
                  .on_assign = {},
                  .on_free = [this](uint32_t slab) { notes_.Drop(slab); },
                  .assign_cost = {}}),
      notes_(layout.extents_per_dir * static_cast<uint32_t>(options_.dirs.size())),
      tails_(std::make_shared<TailBuffers>()),
      completions_(std::make_shared<CompletionQueue>(core)),
      slot_buffers_(std::make_shared<SlotBuffers>(kSlotBuffersBytesMax)),
      device_breaker_(kDeviceBreaker),
      write_breaker_(kWriteBreaker) {
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
  if (state() != TierState::kServing) return absl::UnavailableError(WhyNotServing());
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

// A write only reads `src`.
FileOperation NvmeTier::PlainWrite(MutableRegion src, const PageIdentity& identity,
                                   uint64_t generation) {
  auto tail = std::make_shared<TailBuffers::Lease>(tails_->Take());
  const uint64_t tail_offset = TailOffset(identity.shape);
  const MutableRegion tail_region{tail->data(), TailBytes(identity.shape)};
  FileOperation operation{.buffer = {src.data, tail_offset}, .tail = tail_region};
  if (tail_offset == 0) {  // a page below 4 KiB is all tail
    operation.buffer = tail_region;
    operation.tail = {};
  }
  // Holds the tail until the operation has ended.
  operation.prepare = [tail, memory = src.data, identity, generation](FileOperation&) {
    return MakeTail(tail->data(), memory, identity, generation);
  };
  return operation;
}

void NvmeTier::Submit(Device& device, FileOperation operation) {
  device.watch->Began(clock_.Now());
  ArmWatch();
  // Cannot be refused: each mover takes inflight_max operations, counted above over all of them.
  const absl::Status status = device.mover->Submit(std::move(operation));
  if (!status.ok()) {
    std::fprintf(stderr, "nvme: %s\n", std::string(status.message()).c_str());
    std::abort();
  }
}

void NvmeTier::Write(PageId page, const PageIdentity& identity, ConstRegion src,
                     absl::Time deadline, Done done) {
  absl::Status status = CheckTransfer(page, identity, src.data, src.bytes);
  if (status.ok() && state() != TierState::kServing) {
    status = absl::UnavailableError(WhyNotServing());
  }
  if (!status.ok()) return Fail(std::move(done), std::move(status));
  const auto cipher = CipherToWrite(identity);
  if (!cipher.ok()) return Fail(std::move(done), cipher.status());

  const Place place = PlaceOf(page);
  const uint64_t generation = generation_base_ + page.generation;
  // From here on, not from success on: whatever reaches the index goes at Release().
  notes_.Set(page, identity, generation);
  ++stats_.in_flight;
  auto* memory = const_cast<std::byte*>(src.data);
  FileOperation operation = *cipher == nullptr
                                ? PlainWrite({memory, src.bytes}, identity, generation)
                                : EncryptedWrite(*cipher, {memory, src.bytes}, identity,
                                                 {page.slab, page.slot, generation});
  operation.direction = FileDirection::kWrite;
  operation.file = place.device->file;
  operation.offset = place.offset;
  operation.deadline = deadline;
  std::string key = EncodeRecordKey(
      {identity.fingerprint, identity.epoch, identity.block_index, page.slab, page.slot});
  const uint32_t key_id = *cipher == nullptr ? 0 : (*cipher)->newest_key_id();
  // An encrypted page gets no record before the secret of its epoch is on disk.
  const uint64_t secrets = *cipher == nullptr ? 0 : encryption_->version();
  operation.done = [this, key = std::move(key),
                    value = EncodeRecordValue(identity, generation, key_id), secrets,
                    saved_secrets = saved_secrets_, bytes = src.bytes, memory, identity,
                    watch = place.device->watch.get(),
                    done = std::move(done)](FileResult result) mutable {
    watch->Ended(clock_.Now(), IsAnswer(result));
    auto finish = [this, bytes, done = std::move(done)](FileResult outcome) mutable {
      completions_->Post(
          [this, bytes, outcome = std::move(outcome), done = std::move(done)]() mutable {
            FinishWrite(bytes, std::move(outcome), std::move(done));
          });
    };
    if (!result.status.ok()) return finish(std::move(result));
    // The slices are hashed on the index thread, so that the progress thread keeps the device busy.
    // A page that fails gets no record.
    auto check = [memory, identity, secrets, saved_secrets]() -> absl::Status {
      if (saved_secrets->load() < secrets) {
        return absl::UnavailableError("the secret of its namespace could not be saved");
      }
      return transfer::VerifySlot(memory, identity);
    };
    index_watch_.Began(clock_.Now());
    index_->Put(std::move(key), std::move(value), std::move(check),
                [this, finish = std::move(finish)](absl::Status put) mutable {
                  index_watch_.Ended(clock_.Now(), true);
                  if (!put.ok() && !absl::IsDataLoss(put)) {
                    completions_->Post([this, put] { EnterReadOnly(std::string(put.message())); });
                  }
                  finish({std::move(put), 0});
                });
  };
  Submit(*place.device, std::move(operation));
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
  JudgeWrite(result);
  done(std::move(result.status));
}

void NvmeTier::Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    Done done) {
  StartRead(page, expect, dst, deadline, nullptr, std::move(done));
}

void NvmeTier::ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst,
                            absl::Time deadline, OnSlices on_slices, Done done) {
  StartRead(page, expect, dst, deadline, std::move(on_slices), std::move(done));
}

void NvmeTier::StartRead(PageId page, const PageIdentity& expect, MutableRegion dst,
                         absl::Time deadline, OnSlices on_slices, Done done) {
  absl::Status status = CheckTransfer(page, expect, dst.data, dst.bytes);
  if (status.ok() && !notes_.Has(page)) {
    status = absl::FailedPreconditionError("nvme: the page was not written");
  }
  if (status.ok() && !device_breaker_.is_closed()) {
    status = absl::UnavailableError(WhyNotServing());
  }
  if (!status.ok()) return Fail(std::move(done), std::move(status));

  auto cipher = CipherToRead(expect);
  if (!cipher.ok()) return Fail(std::move(done), cipher.status());

  const Place place = PlaceOf(page);
  const PagePlace at{page.slab, page.slot, notes_.disk_generation(page)};
  AnswerWatch* const watch = place.device->watch.get();
  ++stats_.in_flight;
  FileOperation operation{.direction = FileDirection::kRead,
                          .file = place.device->file,
                          .offset = place.offset,
                          .buffer = dst,
                          .deadline = deadline};
  operation.check = [data = dst.data, expect, cipher = *cipher, at] {
    return cipher == nullptr ? AcceptSlot(data, expect, at.generation)
                             : cipher->Open(data, expect, at);
  };
  // Nothing of an encrypted page is known to be right before all of it is there.
  if (on_slices != nullptr && *cipher == nullptr)
    ReadInPieces(&operation, expect, at, watch, std::move(on_slices));
  operation.done = [this, bytes = dst.bytes, watch,
                    done = std::move(done)](FileResult result) mutable {
    watch->Ended(clock_.Now(), IsAnswer(result));
    completions_->Post([this, bytes, result = std::move(result), done = std::move(done)]() mutable {
      FinishRead(bytes, std::move(result), std::move(done));
    });
  };
  Submit(*place.device, std::move(operation));
}

void NvmeTier::ReadInPieces(FileOperation* read, const PageIdentity& expect, const PagePlace& at,
                            AnswerWatch* watch, OnSlices on_slices) {
  const PageShape& shape = expect.shape;
  const uint64_t whole_blocks = (uint64_t{shape.slice_bytes} + 4095) & ~uint64_t{4095};
  const uint64_t piece_bytes = std::max(options_.piece_bytes, whole_blocks);
  const uint64_t tail_offset = TailOffset(shape);
  if (tail_offset < 2 * piece_bytes) return;  // not worth a second request
  const MutableRegion slot = read->buffer;
  read->buffer = {slot.data, tail_offset};
  read->tail = {slot.data + tail_offset, TailBytes(shape)};
  read->piece_bytes = piece_bytes;
  read->check = {};
  read->check_piece = [this, watch, on_slices = std::move(on_slices),
                       arrival = std::make_unique<SlotArrival>(slot.data, expect, at.generation)](
                          uint64_t moved_bytes) -> absl::Status {
    // Pieces of many pages take turns, so that all of them may end late, and together.
    watch->Answered(clock_.Now());
    const uint32_t before = arrival->ready_slices();
    RETURN_IF_ERROR(arrival->OnBytes(moved_bytes));
    if (const uint32_t ready = arrival->ready_slices(); ready > before)
      completions_->Post([on_slices, ready] { on_slices(ready); });
    return absl::OkStatus();
  };
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
  JudgeRead(result);
  done(std::move(result.status));
}

std::string NvmeTier::backend_name() const {
  return devices_.front().mover->backend() == FileMover::BackendKind::kIoUring ? "io_uring"
                                                                               : "pread/pwrite";
}

absl::Status NvmeTier::CheckInvariants() const {
  RETURN_IF_ERROR(allocator_.CheckInvariants());
  if (notes_.records() > allocator_.used_pages()) {
    return absl::InternalError(absl::StrCat("nvme: ", notes_.records(), " records for ",
                                            allocator_.used_pages(), " used slots"));
  }
  return absl::OkStatus();
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
