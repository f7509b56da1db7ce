// CudaContext is one device of this process: the driver, its primary context, and whether it still
// works.
//
// A device fails once and for all: an error of the driver other than "out of memory" leaves a
// context that answers nothing but that error, and memory that nobody can read. The first failure is
// kept, told once, and everything that uses the device refuses from then on. Only a restart of the
// process brings it back.
//
// Thread-safe. Outlives what was made with it; held by shared_ptr because slabs, the mover and the
// tier end in any order.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "transfer/cuda/cuda_driver.h"

namespace kvstore::transfer {

class CudaContext {
 public:
  // Errors: NotFound, no such device (the message says how many there are); FailedPrecondition, the
  // device cannot share memory by file descriptor; Unavailable, the driver refuses the device.
  static absl::StatusOr<std::shared_ptr<CudaContext>> Open(std::unique_ptr<CudaDriver> driver,
                                                           int device);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  CudaDriver& driver() const { return *driver_; }
  int device() const { return device_; }
  const std::string& device_name() const { return device_name_; }  // "NVIDIA H200"
  uint64_t granularity() const { return granularity_; }            // of device memory, in bytes

  // Makes the context current on the calling thread: before any other call of the driver.
  absl::Status Bind() { return Check(driver_->SetContext(context_), "context"); }
  // As CudaStatus(); anything but OK, "out of memory" and "not ready" fails the device.
  absl::Status Check(CUresult result, const char* what);
  // Of device memory now; for messages. Requires Bind().
  std::string FreeMemory() const;
  // Zeroes device memory and waits for it: 256 MiB take 0.1 ms, or a turn of whoever computes.
  // Errors: Unavailable.
  absl::Status Zero(CUdeviceptr data, uint64_t bytes) ABSL_LOCKS_EXCLUDED(zero_mutex_);

  // The device is of no use any more. The first reason stands.
  void Fail(absl::Status reason) ABSL_LOCKS_EXCLUDED(mutex_);
  bool has_failed() const { return has_failed_.load(std::memory_order_acquire); }
  absl::Status failure() const ABSL_LOCKS_EXCLUDED(mutex_);  // OK: none
  // `on_failed` runs once, on the thread that saw the failure; at once if it is past.
  // nullptr: from the return on it does not run any more.
  void set_on_failed(std::function<void()> on_failed) ABSL_LOCKS_EXCLUDED(mutex_, callback_mutex_);

 private:
  CudaContext(std::unique_ptr<CudaDriver> driver, int device)
      : driver_(std::move(driver)), device_(device) {}
  absl::Status Retain();

  const std::unique_ptr<CudaDriver> driver_;
  const int device_;
  std::string device_name_;
  uint64_t granularity_ = 0;
  CUcontext context_ = nullptr;
  CUstream zero_stream_ = nullptr;
  CUevent zero_event_ = nullptr;
  absl::Mutex zero_mutex_;               // one at a time: the event is reused
  std::atomic<bool> has_failed_{false};  // release in Fail(): pairs with the acquire above
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  // Held while the callback runs, so that it can be taken away.
  absl::Mutex callback_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::function<void()> on_failed_ ABSL_GUARDED_BY(callback_mutex_);
};

}  // namespace kvstore::transfer
