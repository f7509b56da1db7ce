#include "engine_adapter/paging/prefix_cache.h"

#include <utility>

namespace kvstore::engine {

std::string_view BlockSourceName(BlockSource source) {
  static constexpr std::string_view kNames[kNumBlockSources] = {"gpu", "dram", "nvme", "peer",
                                                                "shared"};
  return kNames[static_cast<size_t>(source)];
}

PrefixLoad PrivatePages::LoadPrefix(std::span<const uint32_t>) { return load_; }

const std::byte* PrivatePages::LoadedPage(int64_t) const { return nullptr; }

int64_t PrivatePages::WaitReady(int64_t) { return 0; }

absl::StatusOr<std::byte*> PrivatePages::NewPage(int64_t) {
  auto page = memory_.Allocate(fill_);
  if (!page.ok()) return page.status();
  pages_.push_back(*std::move(page));
  return pages_.back().get();
}

void PrivatePages::PublishPage(int64_t, std::span<const uint32_t>) {}

void PrivatePages::Finish() { pages_.clear(); }

}  // namespace kvstore::engine
