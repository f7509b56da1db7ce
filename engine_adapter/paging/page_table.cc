#include "engine_adapter/paging/page_table.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

namespace kvstore::engine {

PageTable::PageTable(const KvLayout& layout, int64_t blocks_max, PageMemory::Page scratch)
    : layout_(layout), blocks_max_(blocks_max), scratch_(std::move(scratch)) {
  read_.reserve(static_cast<size_t>(blocks_max));
  write_.reserve(static_cast<size_t>(blocks_max));
}

absl::StatusOr<PageTable> PageTable::Create(const KvLayout& layout, int64_t max_tokens,
                                            PageMemory& memory) {
  auto scratch = memory.Allocate(PageMemory::Fill::kNone);
  if (!scratch.ok()) return scratch.status();
  return PageTable(layout, layout.BlocksOf(max_tokens), *std::move(scratch));
}

void PageTable::AddLoaded(const PrefixCache& cache, int64_t num_blocks) {
  for (int64_t block = this->num_blocks(); block < std::min(num_blocks, blocks_max_); ++block) {
    read_.push_back(cache.LoadedPage(block));
    write_.push_back(scratch_.get());
  }
}

absl::Status PageTable::Extend(PrefixCache& cache, int64_t tokens) {
  if (layout_.BlocksOf(tokens) > blocks_max_) {
    return absl::InternalError(
        absl::StrCat("page table of ", blocks_max_, " blocks asked for ", tokens, " tokens"));
  }
  while (num_blocks() < layout_.BlocksOf(tokens)) {
    absl::StatusOr<std::byte*> page = cache.NewPage(num_blocks());
    if (!page.ok()) return page.status();
    read_.push_back(*page);
    write_.push_back(*page);
  }
  return absl::OkStatus();
}

absl::Status PageTable::Replace(PrefixCache& cache, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < std::min(end, num_blocks()); ++block) {
    absl::StatusOr<std::byte*> page = cache.NewPage(block);
    if (!page.ok()) return page.status();
    read_[static_cast<size_t>(block)] = *page;
    write_[static_cast<size_t>(block)] = *page;
  }
  return absl::OkStatus();
}

}  // namespace kvstore::engine
