#include "engine_adapter/llama_cuda/cuda_pages.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::StatusOr<std::unique_ptr<CudaPages>> CudaPages::Create(const KvLayout& layout,
                                                             int64_t num_pages,
                                                             cudaStream_t stream) {
  std::unique_ptr<CudaPages> pages(new CudaPages(layout, num_pages, stream));
  const int64_t page_bytes = layout.page_bytes();
  ASSIGN_OR_RETURN(pages->memory_,
                   DeviceMemory::Allocate(static_cast<size_t>(num_pages * page_bytes)));
  RETURN_IF_RUNTIME_ERROR(
      kernels::cuda::MakeKvPool(pages->memory_.data(), pages->memory_.size(),
                                static_cast<int>(layout.head_dim),
                                static_cast<int>(layout.block_tokens), &pages->pool_),
      "a pool of KV pages");
  for (int64_t slot = num_pages; slot-- > 0;) {
    pages->free_.push_back(pages->memory_.data() + slot * page_bytes);
  }
  return pages;
}

absl::StatusOr<PageMemory::Page> CudaPages::Allocate(Fill fill) {
  if (free_.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", num_pages_, " KV pages of the device are in use"));
  }
  Page page(free_.back(), Return(this));
  free_.pop_back();
  if (fill == Fill::kNan) {
    RETURN_IF_RUNTIME_ERROR(
        cudaMemsetAsync(page.get(), 0xff, static_cast<size_t>(layout_.page_bytes()), stream_),
        "a new KV page");
  }
  return page;
}

}  // namespace kvstore::engine
