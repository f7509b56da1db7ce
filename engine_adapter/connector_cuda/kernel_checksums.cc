#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/connector_cuda/checksum_batch.h"
#include "engine_adapter/llama_cuda/device_memory.h"
#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kernels/cuda/page_checksum.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

using Task = kernels::CudaChecksumTask;

// Page-locking takes longer than the checksums of a prompt: memory is kept. A prompt of 64 Ki tokens
// in blocks of 256, 32 layers, has 8,192 tasks.
constexpr size_t kTasksMin = 8192;

class SpareMemory {
 public:
  struct Part {
    PinnedMemory memory;
    size_t num_tasks = 0;
  };
  absl::StatusOr<Part> Take(size_t num_tasks) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      const auto found = std::ranges::find_if(
          parts_, [num_tasks](const Part& part) { return part.num_tasks >= num_tasks; });
      if (found != parts_.end()) {
        Part part = std::move(*found);
        parts_.erase(found);
        return part;
      }
    }
    Part part{.num_tasks = std::max(num_tasks, kTasksMin)};
    ASSIGN_OR_RETURN(part.memory,
                     PinnedMemory::Allocate(part.num_tasks * (sizeof(Task) + sizeof(uint64_t))));
    return part;
  }
  void Give(Part part) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    parts_.push_back(std::move(part));
  }

 private:
  absl::Mutex mutex_;
  std::vector<Part> parts_ ABSL_GUARDED_BY(mutex_);
};

class KernelChecksums final : public ChecksumBatch {
 public:
  KernelChecksums(std::shared_ptr<SpareMemory> spare, SpareMemory::Part part, uint32_t slice_bytes)
      : spare_(std::move(spare)),
        part_(std::move(part)),
        tasks_(part_.memory.data<Task>()),
        checksums_(reinterpret_cast<uint64_t*>(tasks_ + part_.num_tasks)),
        slice_bytes_(slice_bytes) {}
  ~KernelChecksums() override { spare_->Give(std::move(part_)); }

  void Set(size_t task, CUdeviceptr data, uint64_t seed) override {
    tasks_[task] = {reinterpret_cast<const void*>(data), seed};
  }
  absl::Status Launch(size_t first, size_t count, uint32_t blocks_max, CUstream stream) override {
    if (count == 0) return absl::OkStatus();
    return RuntimeStatus(kernels::LaunchCudaChecksums(tasks_ + first, checksums_ + first,
                                                      static_cast<uint32_t>(count), slice_bytes_,
                                                      blocks_max, stream),
                         "checksums of pages");
  }
  uint64_t result(size_t task) const override { return checksums_[task]; }

 private:
  const std::shared_ptr<SpareMemory> spare_;  // shared with the factory, which may end before
  SpareMemory::Part part_;
  Task* const tasks_;
  uint64_t* const checksums_;
  const uint32_t slice_bytes_;
};

}  // namespace

MakeChecksumBatch MakeKernelChecksums() {
  return [spare = std::make_shared<SpareMemory>()](
             size_t num_tasks,
             uint32_t slice_bytes) -> absl::StatusOr<std::unique_ptr<ChecksumBatch>> {
    ASSIGN_OR_RETURN(SpareMemory::Part part, spare->Take(num_tasks));
    return std::make_unique<KernelChecksums>(spare, std::move(part), slice_bytes);
  };
}

}  // namespace kvstore::engine
