// CudaPages is a pool of KV pages in device memory. It lies in an address range with whatever else
// the attention kernel reads pages from (slabs of a daemon): one description covers the range.
//
// Thread-safe: sequences take and give back pages on threads of their own. Pages are filled on the
// stream that computes with them.
#pragma once

#include <absl/status/statusor.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/paging/kv_layout.h"
#include "engine_adapter/paging/page_memory.h"
#include "kernels/cuda/attention.h"
#include "transfer/cuda/device_memory.h"

namespace kvstore::engine {

class CudaPages final : public PageMemory {
 public:
  // `range` is at most 256 GiB. Errors: ResourceExhausted, no room on the device; InvalidArgument, a
  // layout that the attention kernel does not read.
  static absl::StatusOr<std::unique_ptr<CudaPages>> Create(
      const KvLayout& layout, int64_t num_pages, std::shared_ptr<transfer::CudaContext> context,
      std::shared_ptr<transfer::AddressRange> range, cudaStream_t stream);

  absl::StatusOr<Page> Allocate(Fill fill) override ABSL_LOCKS_EXCLUDED(mutex_);
  // Everything in the range.
  const kernels::cuda::KvPool& pool() const { return pool_; }
  int64_t num_pages() const { return num_pages_; }

 protected:
  void Free(std::byte* page) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  CudaPages(const KvLayout& layout, int64_t num_pages, cudaStream_t stream)
      : layout_(layout), num_pages_(num_pages), stream_(stream) {}

  const KvLayout layout_;
  const int64_t num_pages_;
  const cudaStream_t stream_;
  std::unique_ptr<transfer::DeviceMemory> memory_;
  kernels::cuda::KvPool pool_;
  absl::Mutex mutex_;
  std::vector<std::byte*> free_ ABSL_GUARDED_BY(mutex_);  // the last one is taken first
};

}  // namespace kvstore::engine
