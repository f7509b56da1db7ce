#include "engine_adapter/paging/prefix_cache.h"

#include <cstring>
#include <utility>

namespace kvstore::engine {

std::string_view BlockSourceName(BlockSource source) {
  static constexpr std::string_view kNames[kNumBlockSources] = {"gpu", "dram", "nvme", "peer",
                                                                "shared"};
  return kNames[static_cast<size_t>(source)];
}

PrivatePages::PrivatePages(const KvLayout& layout, Fill fill) : layout_(layout), fill_(fill) {}

PrefixLoad PrivatePages::LoadPrefix(std::span<const uint32_t>) { return load_; }

const std::byte* PrivatePages::LoadedPage(int64_t) const { return nullptr; }

int64_t PrivatePages::WaitReady(int64_t) { return 0; }

absl::StatusOr<std::byte*> PrivatePages::NewPage(int64_t) {
  auto page = AlignedBuffer::Allocate(static_cast<size_t>(layout_.page_bytes()));
  if (!page.ok()) return page.status();
  // 0xffff is a NaN in bf16, 0xffffffff in float32.
  if (fill_ == Fill::kNan) std::memset(page->data(), 0xff, page->size());
  pages_.push_back(*std::move(page));
  return pages_.back().data();
}

void PrivatePages::PublishPage(int64_t, std::span<const uint32_t>) {}

void PrivatePages::Finish() { pages_.clear(); }

}  // namespace kvstore::engine
