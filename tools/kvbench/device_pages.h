// Host and device memory for the pages suite: a set of random bytes to send, a set to send back, and
// one to receive into, each as production has it (registered memfd, shareable device memory).
//
// Confined to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "transfer/cuda/copy_engine.h"
#include "transfer/cuda/cuda_context.h"
#include "transfer/cuda/device_memory.h"
#include "transfer/memory/sealed_memory.h"

namespace kvstore::bench {

class DevicePages {
 public:
  // Errors: what opening CUDA device `device` reports; ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<DevicePages>> Open(int device, uint64_t set_bytes);
  ~DevicePages();

  uint64_t bytes() const { return bytes_; }
  // Of the set that moves in that direction. To the device: random bytes.
  CUdeviceptr host(transfer::CopyDirection direction) const;
  CUdeviceptr device(transfer::CopyDirection direction) const;
  transfer::CopyEngine& engine() { return *engine_; }
  const std::shared_ptr<transfer::CudaContext>& context() const { return context_; }
  double register_seconds_per_gib() const { return register_seconds_per_gib_; }

  // GB/s of one copy of a whole set a direction, all at once; the best of three.
  absl::StatusOr<double> BigCopyRate(const std::vector<transfer::CopyDirection>& directions);
  // Fills the receiving host set and both device sets with other bytes.
  void Poison();
  // The set that was sent becomes the set that is sent back.
  absl::Status MoveDeviceSet();
  // DataLoss: the receiving host set is not what was sent.
  absl::Status Compare() const;

  // Seconds that the kernel takes for all fragments.
  absl::StatusOr<double> TimeFragments(const std::vector<transfer::CopyPiece>& pieces,
                                       uint32_t blocks);
  // Seconds for the checksums of all slices of the set that was sent; DataLoss if they are not the
  // CPU's.
  absl::StatusOr<double> TimeChecksums(uint64_t slice_bytes, uint32_t blocks, uint64_t seed);
  absl::StatusOr<double> TimeOneChecksum(uint64_t slice_bytes);

 private:
  DevicePages() = default;
  absl::Status Prepare(int device, uint64_t set_bytes);
  // Waits for what is on the stream.
  absl::Status Finish();

  uint64_t bytes_ = 0;
  MonotonicClock clock_;
  std::shared_ptr<transfer::CudaContext> context_;               // shared with memory and engine
  std::vector<transfer::SealedMemory> host_;                     // [direction]
  std::vector<std::unique_ptr<transfer::DeviceMemory>> device_;  // [direction]
  std::vector<std::byte> tasks_;  // registered: what kernels are told
  std::unique_ptr<transfer::CopyEngine> engine_;
  CUstream stream_ = nullptr, other_stream_ = nullptr;
  CUevent event_ = nullptr;
  double register_seconds_per_gib_ = 0;
};

}  // namespace kvstore::bench
