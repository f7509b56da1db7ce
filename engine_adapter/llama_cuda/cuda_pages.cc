#include "engine_adapter/llama_cuda/cuda_pages.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::StatusOr<std::unique_ptr<CudaPages>> CudaPages::Create(
    const KvLayout& layout, int64_t num_pages, std::shared_ptr<transfer::CudaContext> context,
    std::shared_ptr<transfer::AddressRange> range, cudaStream_t stream) {
  std::unique_ptr<CudaPages> pages(new CudaPages(layout, num_pages, stream));
  const auto page_bytes = static_cast<uint64_t>(layout.page_bytes());
  const uint64_t granularity = context->granularity();
  const uint64_t bytes =
      (static_cast<uint64_t>(num_pages) * page_bytes + granularity - 1) / granularity * granularity;
  RETURN_IF_RUNTIME_ERROR(
      kernels::cuda::MakeKvPool(reinterpret_cast<const std::byte*>(range->data()), range->bytes(),
                                static_cast<int>(layout.head_dim),
                                static_cast<int>(layout.block_tokens), &pages->pool_),
      "a pool of KV pages");
  ASSIGN_OR_RETURN(pages->memory_,
                   transfer::DeviceMemory::Create(std::move(context), bytes, std::move(range)));
  auto* const first = reinterpret_cast<std::byte*>(pages->memory_->data());
  absl::MutexLock lock(&pages->mutex_);
  for (int64_t slot = num_pages; slot-- > 0;) {
    pages->free_.push_back(first + static_cast<uint64_t>(slot) * page_bytes);
  }
  return pages;
}

absl::StatusOr<PageMemory::Page> CudaPages::Allocate(Fill fill) {
  std::byte* data = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (free_.empty()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("all ", num_pages_, " KV pages of the device are in use"));
    }
    data = free_.back();
    free_.pop_back();
  }
  Page page(data, Return(this));
  if (fill == Fill::kNan) {
    RETURN_IF_RUNTIME_ERROR(
        cudaMemsetAsync(data, 0xff, static_cast<size_t>(layout_.page_bytes()), stream_),
        "a new KV page");
  }
  return page;
}

void CudaPages::Free(std::byte* page) {
  absl::MutexLock lock(&mutex_);
  free_.push_back(page);
}

}  // namespace kvstore::engine
