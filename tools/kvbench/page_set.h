// The pages that a suite moves: distinct random bytes in short prefixes, as many as fit a set.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/namespace_spec.h"
#include "tools/kvbench/ceilings.h"

namespace kvstore::bench {

// `model` keeps namespaces of one run apart. One slice a MiB, at least one.
NamespaceSpec PageSpec(const std::string& model, uint64_t page_bytes, uint32_t block_tokens = 16);

// Batches of pages, each the prefix of a prompt of its own. Immutable bytes; the hashes change with
// NextGeneration(), so that the same bytes can be stored anew.
class PageSet {
 public:
  static constexpr uint32_t kBatchBlocks = 32;

  // Errors: ResourceExhausted.
  static absl::StatusOr<PageSet> Make(uint64_t set_bytes, uint64_t page_bytes, uint64_t seed);

  uint64_t page_bytes() const { return page_bytes_; }
  uint64_t batch_bytes() const { return page_bytes_ * kBatchBlocks; }
  size_t num_batches() const { return num_batches_; }
  uint64_t bytes() const { return batch_bytes() * num_batches_; }
  const SetMemory& memory() const { return memory_; }
  std::span<const std::byte> batch(size_t i) const { return memory_.piece(i, batch_bytes()); }
  std::vector<BlockHash> hashes(size_t batch) const;
  void NextGeneration() { ++generation_; }
  // Errors: DataLoss, naming the first batch that differs.
  absl::Status CheckSame(const SetMemory& copy) const;

 private:
  PageSet(SetMemory memory, uint64_t page_bytes, size_t num_batches, uint64_t seed)
      : memory_(std::move(memory)),
        page_bytes_(page_bytes),
        num_batches_(num_batches),
        seed_(seed) {}

  SetMemory memory_;
  uint64_t page_bytes_;
  size_t num_batches_;
  uint64_t seed_;
  uint64_t generation_ = 0;
};

// Overwrites all of it with what no page holds.
void Poison(const SetMemory& memory);

}  // namespace kvstore::bench
