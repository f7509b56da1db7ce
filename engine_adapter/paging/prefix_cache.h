// PrefixCache is where one sequence gets its pages from and gives them back to: pages that already
// hold the leading blocks of its prompt, empty pages for the rest, and a way to offer filled ones
// to others.
//
// The engine's side of the contract (llama/generate.cc):
//   1. LoadPrefix once.
//   2. WaitReady for each layer, ascending, before that layer's slices are read for the first time.
//   3. NewPage for each block behind the loaded ones, ascending, as the prompt and then the output
//   reach it; and, when
//      WaitReady took loaded blocks back, for those.
//   4. PublishPage for each block from NewPage once it is full, ascending (a taken-back block comes
//   before later ones).
//   5. Finish once, or the destructor.
// A failure to load is never an error here: the prefix is shorter and PrefixLoad says why.
//
// Threads: externally synchronised (one sequence, one thread); an implementation may load and save
// on threads of its own. Lifetime: pages stay valid and in place from the call that returned them
// until Finish().
#pragma once

#include <absl/status/statusor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine_adapter/paging/kv_layout.h"
#include "engine_adapter/paging/page_memory.h"

namespace kvstore::engine {

// Where a reused block came from. The order is that of the JSON output.
enum class BlockSource : uint8_t { kGpu, kDram, kNvme, kPeer, kShared };
inline constexpr size_t kNumBlockSources = 5;
std::string_view BlockSourceName(BlockSource source);  // "gpu", "dram", "nvme", "peer", "shared"

// What LoadPrefix found, and what became of it.
struct PrefixLoad {
  int64_t num_blocks = 0;  // leading blocks that are loaded or on their way
  std::array<int64_t, kNumBlockSources> blocks_by_source{};
  uint64_t bytes_loaded = 0;
  std::map<std::string, int64_t> failures;  // reason -> blocks that were recomputed because of it
};

class PrefixCache {
 public:
  virtual ~PrefixCache() = default;

  // Finds the longest run of leading whole blocks of `token_ids` that can be had, and starts to
  // load them. May return before the bytes are there. The whole prompt may be covered; the engine
  // then still computes its last token.
  virtual PrefixLoad LoadPrefix(std::span<const uint32_t> token_ids) = 0;

  // The page of a block that LoadPrefix returned; only read. Slices are valid once WaitReady has
  // said so.
  virtual const std::byte* LoadedPage(int64_t block_index) const = 0;

  // Waits until slice `layer` of every loaded block is valid or has failed for good; returns how
  // many leading blocks are still good, at most what LoadPrefix returned and never more than an
  // earlier call said. When it is fewer, the engine recomputes from there on, and asks NewPage for
  // the lost blocks too. Called with layers in ascending order; cheap when nothing is on its way.
  // Bounded by the implementation's own deadline.
  virtual int64_t WaitReady(int64_t layer) = 0;

  // False once a loaded page may have been changed under the engine: asked after every pass that
  // read loaded pages, before its results are used. Then no loaded page may be read any more
  // (load() has none), and what was computed since the last "true" is void.
  virtual bool IsIntact() = 0;

  // An empty page for block `block_index`, contents unspecified, to be written by the engine only.
  // Errors: ResourceExhausted, no memory for a page at all.
  virtual absl::StatusOr<std::byte*> NewPage(int64_t block_index) = 0;

  // Block `block_index` is full: `block_token_ids` are its block_tokens tokens, and its page (from
  // NewPage) will not be written again. Returns at once; a save in the background must not delay
  // the engine. Failing to save is counted there.
  virtual void PublishPage(int64_t block_index, std::span<const uint32_t> block_token_ids) = 0;

  // Ends the sequence: completes or abandons saves by the implementation's own deadline, releases
  // every page and lease.
  virtual void Finish() = 0;

  // What LoadPrefix returned, with failures found since (WaitReady) taken into account.
  virtual const PrefixLoad& load() const = 0;
};

// Pages of the back-end's own memory: finds nothing, keeps nothing. `memory` outlives it.
class PrivatePages final : public PrefixCache {
 public:
  explicit PrivatePages(PageMemory& memory, PageMemory::Fill fill = PageMemory::Fill::kNone)
      : memory_(memory), fill_(fill) {}

  PrefixLoad LoadPrefix(std::span<const uint32_t> token_ids) override;
  const std::byte* LoadedPage(int64_t block_index) const override;
  int64_t WaitReady(int64_t layer) override;
  bool IsIntact() override { return true; }
  absl::StatusOr<std::byte*> NewPage(int64_t block_index) override;
  void PublishPage(int64_t block_index, std::span<const uint32_t> block_token_ids) override;
  void Finish() override;
  const PrefixLoad& load() const override { return load_; }

 private:
  PageMemory& memory_;
  const PageMemory::Fill fill_;
  PrefixLoad load_;
  std::vector<PageMemory::Page> pages_;  // in the order of NewPage
};

}  // namespace kvstore::engine
