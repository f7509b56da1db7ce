// CopyEngine moves pieces of memory between host and device by the device's copy engines: no kernel
// runs, so whoever computes on the device loses nothing but memory bandwidth.
//
// Pieces of all operations go to the device in batches (256 copies, 32 MiB), a few at a time, so
// that the link never waits for the host and an urgent operation never waits long behind others.
// The directions have streams of their own and run at once.
//
//   Submit() -> waiting [direction][priority] -> batches on the direction's stream -> done
//
// Fencing: memory of an operation belongs to the engine until its `done` runs, and `done` runs only
// when the device has let go of it, also for operations that were cancelled, came too late or failed.
// A device that stops answering (nothing moves for silence_max) fails its context: what waits is
// reported, what the device has stays with it until it answers or Stop() gives it up.
//
// Threads: Submit(), Cancel(), in_flight() are thread-safe and never wait for the device. `done` and
// `on_piece` run on the progress thread, must be quick, and must not call Stop(). The progress thread
// sleeps when nothing is in flight, apart from asking the device four times a second whether it is
// well.
// Limits: at most inflight_max operations between Submit() and `done`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/strong_id.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::transfer {

enum class CopyDirection : uint8_t { kToDevice = 0, kToHost = 1 };
enum class CopyPriority : uint8_t { kUrgent = 0, kBackground = 1 };
using CopyId = StrongId<struct CopyIdTag, uint64_t>;

// Host addresses count as device addresses. Registered host memory moves at the rate of the link.
struct CopyPiece {
  CUdeviceptr dst = 0;
  CUdeviceptr src = 0;
  uint64_t bytes = 0;
};

struct CopyOperation {
  CopyDirection direction = CopyDirection::kToDevice;
  CopyPriority priority = CopyPriority::kUrgent;
  std::vector<CopyPiece> pieces{};  // at least one, none empty
  // Passed: no more of it is given to the device.
  absl::Time deadline = absl::InfiniteFuture();
  // Optional: all bytes of pieces[i] have moved. In order, before `done`.
  absl::AnyInvocable<void(uint32_t piece)> on_piece{};
  // Exactly once. OK: every byte moved. Errors: DeadlineExceeded, Cancelled; Unavailable, the device
  // failed or the engine was stopped. After an error the destination holds anything.
  absl::AnyInvocable<void(absl::Status)> done{};
};

class CopyEngine {
 public:
  struct Options {
    std::string name = "cuda-copy";  // of its thread, at most 15 characters
    uint32_t inflight_max = 1024;    // operations
    // Measured on an H200 with PCIe Gen5: the wire rate down to 64 KiB needs batches of 256.
    uint32_t pieces_in_batch = 256;
    uint64_t bytes_in_batch = uint64_t{32} << 20;  // 0.6 ms of that link
    uint32_t batches_in_flight = 3;                // of a direction
    absl::Duration silence_max = absl::Seconds(3);
    absl::Duration stop_max = absl::Seconds(5);  // how long Stop() waits for a silent device

    absl::Status Validate() const;  // InvalidArgument, naming the field
  };
  // `clock` outlives the engine. Errors: InvalidArgument; ResourceExhausted; Unavailable.
  static absl::StatusOr<std::unique_ptr<CopyEngine>> Create(Options options,
                                                            std::shared_ptr<CudaContext> context,
                                                            const Clock& clock);
  ~CopyEngine();  // Stop()
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;

  // On an error `done` never runs. Errors: ResourceExhausted, inflight_max; Unavailable, the device
  // has failed; FailedPrecondition, stopped; InvalidArgument, no pieces or an empty one.
  absl::StatusOr<CopyId> Submit(CopyOperation operation);
  // What the device does not have yet stays undone; `done` runs with Cancelled, or with OK if all
  // was moved already. Unknown ids are ignored: it is over.
  void Cancel(CopyId id);
  size_t in_flight() const;
  size_t inflight_max() const;

  // Refuses new operations, reports those that wait, waits for those that the device has. Idempotent.
  void Stop();

 private:
  class Progress;
  explicit CopyEngine(std::unique_ptr<Progress> progress);
  const std::unique_ptr<Progress> progress_;
};

}  // namespace kvstore::transfer
