#include "tiers/gpu/cuda_slot_mover.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/gpu/cuda_slab_memory.h"

namespace kvstore::tiers {
namespace {

// Measured beside an H200: 7.6 GB/s a core, 49 with eight; the link carries 55 each way. A kernel
// would do it on four thread blocks, but while it runs the engine's process waits for its turn.
constexpr uint32_t kCheckerThreads = 8;

CUdeviceptr DeviceAddress(const SlabPlace& place) {
  return static_cast<const CudaSlabMemory&>(*place.memory).device_data() + place.offset;
}

CUdeviceptr HostAddress(const std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

absl::Status Stopped() { return absl::UnavailableError("stopped before the copy was over"); }

}  // namespace

absl::StatusOr<std::unique_ptr<SlotMover>> CudaSlotMover::Create(
    std::shared_ptr<transfer::CudaContext> context, size_t inflight_max, Executor& core,
    const Clock& clock) {
  const transfer::CopyEngine::Options options = {
      .name = "gpu-copy", .inflight_max = static_cast<uint32_t>(inflight_max)};
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::CopyEngine> engine,
                   transfer::CopyEngine::Create(options, std::move(context), clock));
  return std::unique_ptr<SlotMover>(
      new CudaSlotMover(std::move(engine), inflight_max, core, clock));
}

CudaSlotMover::CudaSlotMover(std::unique_ptr<transfer::CopyEngine> engine, size_t inflight_max,
                             Executor& core, const Clock& clock)
    : engine_(std::move(engine)),
      inflight_max_(inflight_max),
      completions_(std::make_shared<CompletionQueue>(core)),
      checker_({.name = "gpu-check",
                .num_threads = std::min(kCheckerThreads,
                                        std::max(1U, std::thread::hardware_concurrency() / 2)),
                .inflight_max = inflight_max},
               core, clock) {}

void CudaSlotMover::Write(const SlabPlace& to, const PageIdentity& identity, ConstRegion src,
                          absl::Time deadline, Done done) {
  done = Admit(to.memory, std::move(done));
  if (done == nullptr) return;
  const transfer::CopyPiece piece = {DeviceAddress(to), HostAddress(src.data), src.bytes};
  checker_.Verify(src.data, identity, deadline,
                  [this, piece, deadline, done = std::move(done)](absl::Status status) mutable {
                    if (status.ok() && is_stopped_) status = Stopped();
                    if (!status.ok()) return done(std::move(status));
                    Copy(transfer::CopyDirection::kToDevice, piece, deadline, std::move(done));
                  });
}

void CudaSlotMover::Read(const SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
                         absl::Time deadline, Done done) {
  done = Admit(from.memory, std::move(done));
  if (done == nullptr) return;
  const transfer::CopyPiece piece = {HostAddress(dst.data), DeviceAddress(from), dst.bytes};
  Copy(transfer::CopyDirection::kToHost, piece, deadline,
       [this, expect, dst, done = std::move(done)](absl::Status status) mutable {
         if (status.ok() && is_stopped_) status = Stopped();
         if (!status.ok()) return done(std::move(status));
         // It is here: late is no reason to throw it away.
         checker_.Accept(dst.data, expect, absl::InfiniteFuture(), std::move(done));
       });
}

SlotMover::Done CudaSlotMover::Admit(std::shared_ptr<SlabMemory> memory, Done done) {
  absl::Status refused;
  if (is_stopped_) refused = absl::UnavailableError("the mover is stopped");
  if (in_flight_ >= inflight_max_) {
    refused = absl::ResourceExhaustedError(
        absl::StrCat(inflight_max_, " operations are in flight, the most allowed"));
  }
  if (!refused.ok()) {
    Fail(std::move(refused), std::move(done));
    return nullptr;
  }
  ++in_flight_;
  return [this, memory = std::move(memory), done = std::move(done)](absl::Status status) mutable {
    --in_flight_;
    done(std::move(status));
  };
}

void CudaSlotMover::Copy(transfer::CopyDirection direction, transfer::CopyPiece piece,
                         absl::Time deadline, Done next) {
  // Runs on the progress thread, or here when the engine refuses.
  auto report = [completions = completions_, next = std::move(next)](absl::Status status) mutable {
    completions->Post([next = std::move(next), status = std::move(status)]() mutable {
      next(std::move(status));
    });
  };
  // Held by both ways to report, of which one is taken.
  auto shared = std::make_shared<decltype(report)>(std::move(report));
  transfer::CopyOperation operation = {.direction = direction, .deadline = deadline};
  operation.pieces.push_back(piece);
  operation.done = [shared](absl::Status status) { (*shared)(std::move(status)); };
  const absl::StatusOr<transfer::CopyId> id = engine_->Submit(std::move(operation));
  if (!id.ok()) (*shared)(id.status());
}

void CudaSlotMover::Fail(absl::Status status, Done done) {
  completions_->Post(
      [status = std::move(status), done = std::move(done)]() mutable { done(std::move(status)); });
}

void CudaSlotMover::Stop() {
  is_stopped_ = true;
  engine_->Stop();
  completions_->Drain();  // reads that arrived are not checked any more
  checker_.Stop();        // writes that were checked are not copied any more
  completions_->Drain();
}

}  // namespace kvstore::tiers
