// A CUDA driver without a device, for tests on any machine. It is as unkind as the real one may be:
// device addresses are no host addresses; work is done late, in any order that streams allow, by a
// thread of its own, and source bytes are read only then; destinations hold poison from the moment a
// copy was asked for; a thread without a current context is refused; any call can be made to fail,
// once or from there on, and the device to stop answering.
//
// Device memory is a memfd, so that it can be exported to another process with a fake of its own.
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "transfer/cuda/cuda_driver.h"

namespace kvstore::transfer {

enum class FakeFailure { kOnce, kFromThereOn };

// What a fake does; shared with the test, which looks at it while a context owns the driver.
struct FakeCudaDevice {
  static constexpr uint64_t kGranularity = 4096;

  explicit FakeCudaDevice(uint32_t seed) : random(seed) {}

  // Set before use.
  int num_devices = 1;
  uint64_t memory_bytes = uint64_t{1} << 30;
  absl::Duration delay_max = absl::ZeroDuration();  // before each piece of work

  // Fails the call with that number, the first being 1; 0: none.
  std::atomic<uint64_t> fail_at{0};
  std::atomic<FakeFailure> failure{FakeFailure::kFromThereOn};
  std::atomic<CUresult> error{CUDA_ERROR_LAUNCH_FAILED};
  std::atomic<bool> is_hanging{false};
  std::atomic<uint64_t> calls{0};
  std::atomic<bool> has_failed{false};
  // What no correct program does: memory unmapped under a copy, copies outside of any memory.
  std::atomic<uint64_t> offences{0};
  std::atomic<uint64_t> allocated_bytes{0};
  std::atomic<uint64_t> registered{0};  // stretches of host memory
  std::atomic<uint64_t> handles{0};     // allocations, contexts, streams and events that live

  absl::Mutex mutex;
  std::mt19937 random ABSL_GUARDED_BY(mutex);
};

// A driver over `device`.
std::unique_ptr<CudaDriver> MakeFakeCudaDriver(std::shared_ptr<FakeCudaDevice> device);

}  // namespace kvstore::transfer
