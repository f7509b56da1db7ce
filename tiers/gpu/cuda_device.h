// CudaDevice: a GPU. Slabs are device memory of the daemon, exported to clients as file descriptors;
// slots are moved by the copy engines and checked by CPU, so that the compute units stay the
// engine's.
//
// Threads: tiers/gpu/device.h.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "tiers/gpu/device.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::tiers {

class CudaDevice final : public Device {
 public:
  // Errors: as OpenDevice().
  static absl::StatusOr<std::unique_ptr<Device>> Open(int number);
  // On a driver of the caller's. Tests.
  static absl::StatusOr<std::unique_ptr<Device>> Open(std::unique_ptr<transfer::CudaDriver> driver,
                                                      int number);

  std::string name() const override;
  absl::Status CheckRoom(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSlab(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<SlotMover>> MakeMover(size_t inflight_max, Executor& core,
                                                       const Clock& clock) override;
  void RegisterMemory(MutableRegion region) override ABSL_LOCKS_EXCLUDED(mutex_);
  void UnregisterMemory(MutableRegion region) override ABSL_LOCKS_EXCLUDED(mutex_);
  std::string degraded() const override ABSL_LOCKS_EXCLUDED(mutex_);
  bool has_failed() const override { return context_->has_failed(); }
  std::string failure() const override;
  void set_on_failed(std::function<void()> on_failed) override {
    context_->set_on_failed(std::move(on_failed));
  }

 private:
  explicit CudaDevice(std::shared_ptr<transfer::CudaContext> context)
      : context_(std::move(context)) {}

  const std::shared_ptr<transfer::CudaContext> context_;  // shared with slabs and movers
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<const std::byte*> registered_ ABSL_GUARDED_BY(mutex_);
  std::string degraded_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::tiers
