#include "tools/kvbench/page_set.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/random_bytes.h"

namespace kvstore::bench {
namespace {

constexpr uint64_t kSliceBytesMax = uint64_t{1} << 20;

}  // namespace

NamespaceSpec PageSpec(const std::string& model, uint64_t page_bytes, uint32_t block_tokens) {
  NamespaceSpec spec;
  spec.model = model;
  spec.weights_revision = "1";
  spec.kv_dtype = "bf16";
  spec.numerics = "none";
  spec.block_tokens = block_tokens;
  const uint64_t slice_bytes = std::min(page_bytes, kSliceBytesMax);
  spec.shape = {.num_slices = static_cast<uint32_t>(page_bytes / slice_bytes),
                .slice_bytes = static_cast<uint32_t>(slice_bytes)};
  return spec;
}

absl::StatusOr<PageSet> PageSet::Make(uint64_t set_bytes, uint64_t page_bytes, uint64_t seed) {
  const uint64_t batch_bytes = page_bytes * kBatchBlocks;
  const size_t num_batches = std::max<uint64_t>(1, set_bytes / batch_bytes);
  ASSIGN_OR_RETURN(SetMemory memory, SetMemory::Make(num_batches * batch_bytes));
  FillRandom(memory.bytes(), seed);
  return PageSet(std::move(memory), page_bytes, num_batches, seed);
}

std::vector<BlockHash> PageSet::hashes(size_t batch) const {
  return RandomHashes(kBatchBlocks, seed_ + (generation_ << 32) + batch * 1013 + 17);
}

absl::Status PageSet::CheckSame(const SetMemory& copy) const {
  for (size_t i = 0; i < num_batches_; ++i) {
    if (std::memcmp(batch(i).data(), copy.piece(i, batch_bytes()).data(), batch_bytes()) != 0) {
      return absl::DataLossError(absl::StrCat("WRONG BYTES: batch ", i, " of pages of ",
                                              page_bytes_, " bytes is not what was put"));
    }
  }
  return absl::OkStatus();
}

void Poison(const SetMemory& memory) {
  std::memset(memory.bytes().data(), 0xa5, memory.bytes().size());
}

}  // namespace kvstore::bench
