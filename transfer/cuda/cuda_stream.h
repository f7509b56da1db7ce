// CudaStream is a stream of a device, CudaEvent a point in one. For those who order copies and
// kernels among each other on the device; who only wants bytes moved uses CopyEngine.
//
// Threads: a stream is thread-safe, what several threads enqueue is in some order; an event is
// externally synchronised. Every call binds the context to the calling thread. Ended when destroyed,
// which does not wait: Synchronize() first while memory of ours is at work.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::transfer {

class CudaEvent {
 public:
  static absl::StatusOr<CudaEvent> Create(std::shared_ptr<CudaContext> context);
  CudaEvent(CudaEvent&& other) noexcept
      : context_(std::move(other.context_)), event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&&) = delete;
  ~CudaEvent();

  CUevent get() const { return event_; }
  // What was enqueued on `stream` so far is what it stands for from now on.
  absl::Status Record(CUstream stream);
  // What is enqueued on `stream` from now on waits for it.
  absl::Status HoldUp(CUstream stream) const;
  // Waits for it here: asks the device all the time for a short while, then now and then. A device
  // that does not come to it within 10 s has failed. Errors: Unavailable.
  absl::Status Await() const;

 private:
  CudaEvent(std::shared_ptr<CudaContext> context, CUevent event)
      : context_(std::move(context)), event_(event) {}

  std::shared_ptr<CudaContext> context_;  // shared with all that uses the device
  CUevent event_;
};

// Pieces of memory that move together.
struct CopyList {
  std::vector<CUdeviceptr> to, from;
  std::vector<size_t> bytes;

  // Host addresses count as device addresses.
  void Add(CUdeviceptr to_data, CUdeviceptr from_data, size_t num_bytes) {
    to.push_back(to_data);
    from.push_back(from_data);
    bytes.push_back(num_bytes);
  }
};

class CudaStream {
 public:
  enum class Priority { kUrgent, kBackground };
  static absl::StatusOr<CudaStream> Create(std::shared_ptr<CudaContext> context, Priority priority);
  CudaStream(CudaStream&& other) noexcept
      : context_(std::move(other.context_)), stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&&) = delete;
  ~CudaStream();

  CUstream get() const { return stream_; }
  // Enqueues the copies, by the copy engines, in batches of the size that reaches the wire rate.
  absl::Status Copy(CopyList& copies) const;
  // Waits for what was enqueued so far, as CudaEvent::Await().
  absl::Status Synchronize() const;

 private:
  CudaStream(std::shared_ptr<CudaContext> context, CUstream stream)
      : context_(std::move(context)), stream_(stream) {}

  std::shared_ptr<CudaContext> context_;  // shared with all that uses the device
  CUstream stream_;
};

}  // namespace kvstore::transfer
