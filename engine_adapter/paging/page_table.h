// PageTable maps the blocks of one sequence to pages, apart for reading and for writing.
//
// A loaded page may belong to others and is never written: for such a block the write side is a
// scratch page, so that a token whose block was loaded can be computed again (a full hit still
// computes its last token) without touching it. Its keys and values are read back from the loaded
// page, which holds the same bits.
//
// Threads: externally synchronised. Pages are owned by the PrefixCache, the scratch page by the
// table.
#pragma once

#include <absl/status/status.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine_adapter/paging/kv_layout.h"
#include "engine_adapter/paging/page_memory.h"
#include "engine_adapter/paging/prefix_cache.h"

namespace kvstore::engine {

class PageTable {
 public:
  // Room for `max_tokens` tokens; no call below allocates table memory. The scratch page is of
  // `memory`, which outlives the table.
  static absl::StatusOr<PageTable> Create(const KvLayout& layout, int64_t max_tokens,
                                          PageMemory& memory);

  // Points the first `num_blocks` blocks at loaded pages. Requires: the table is empty.
  void AddLoaded(const PrefixCache& cache, int64_t num_blocks);

  // Gets new pages until `tokens` tokens have room. Requires: tokens <= max_tokens.
  // Errors: those of PrefixCache::NewPage.
  absl::Status Extend(PrefixCache& cache, int64_t tokens);

  // Gets new pages for the loaded blocks [begin, end), whose load failed. Errors: those of
  // PrefixCache::NewPage.
  absl::Status Replace(PrefixCache& cache, int64_t begin, int64_t end);

  int64_t num_blocks() const { return static_cast<int64_t>(read_.size()); }
  const std::byte* const* read_pages() const { return read_.data(); }
  std::byte* const* write_pages() const { return write_.data(); }

 private:
  PageTable(const KvLayout& layout, int64_t blocks_max, PageMemory::Page scratch);

  KvLayout layout_;
  int64_t blocks_max_;
  PageMemory::Page scratch_;
  std::vector<const std::byte*> read_;
  std::vector<std::byte*> write_;
};

}  // namespace kvstore::engine
