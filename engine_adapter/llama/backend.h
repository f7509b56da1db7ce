// Backend computes the forward pass of one model on one device: CpuBackend here, CudaBackend in
// engine_adapter/llama_cuda.
//
// Promise of every back-end: the KV bytes and the logits of a token depend only on the tokens
// before it; not on how a prompt was cut into passes, on how much of it was loaded, on what other
// sequences were computed with it, on the page size or on the number of threads.
//
// Threads: externally synchronised.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/paging/kv_layout.h"
#include "engine_adapter/paging/page_memory.h"
#include "engine_adapter/paging/timeline.h"

namespace kvstore::engine {

// Consecutive tokens of one sequence, computed in one pass.
struct ForwardPass {
  std::span<const uint32_t> token_ids;  // 1 to pass_tokens_max()
  int64_t first_position = 0;
  // Pages of positions [0, first_position + token_ids.size()); see PageTable. Everything before
  // first_position is there.
  const std::byte* const* read_pages = nullptr;
  std::byte* const* write_pages = nullptr;
  // Logits of the last token, [vocab_size]; or empty: then they are not computed.
  std::span<float> logits;
  // Called before the attention of each layer, the first time the pass reads that layer's slices;
  // false ends the pass. May block: that is where a load in flight is waited for. Empty: nothing to
  // wait for.
  std::function<bool(int64_t layer)> layer_gate;
  Timeline* timeline = nullptr;  // may be null
};

// Errors: InvalidArgument, a token id outside the vocabulary, a position outside the model's, or
// more than `rows_max` tokens.
absl::Status CheckPass(const ForwardPass& pass, const ModelConfig& config, int64_t rows_max);
// The same for a batch, each pass and all together.
absl::Status CheckBatch(std::span<const ForwardPass> passes, const ModelConfig& config,
                        int64_t rows_max);

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const KvLayout& kv_layout() const = 0;
  virtual int64_t pass_tokens_max() const = 0;
  // Where its pages lie: every page of a pass is of this memory, or of the same kind.
  virtual PageMemory& page_memory() = 0;
  // Back-ends of the same class write the same KV bytes; part of the cache namespace.
  virtual std::string_view numerics_class() const = 0;
  virtual std::string_view device_name() const = 0;  // for display

  // Writes keys and values of the pass into write_pages and the logits, if wanted. Does not
  // allocate. Errors: InvalidArgument, a token id outside the vocabulary or a position outside the
  // model's; Aborted, the gate said no: the pages of this pass hold a part of its keys and values.
  virtual absl::Status Forward(const ForwardPass& pass) = 0;

  // The same for passes of different sequences at once: decode steps and pieces of prompts in any
  // mix, to the same bits as one Forward() a pass. Weights are read once for all of them, which is
  // what batching is for. Here: one after another; the CUDA back-end will put the decode steps into
  // one captured graph and the pieces of prompts beside them.
  // Errors: as Forward(); InvalidArgument, more than pass_tokens_max() tokens in all, or a pass with
  // a gate among several. What was computed before an error is void.
  virtual absl::Status ForwardBatch(std::span<const ForwardPass> passes);
};

}  // namespace kvstore::engine
