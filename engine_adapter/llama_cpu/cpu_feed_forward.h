// CpuFeedForward is the feed-forward of all layers of one kind: one SwiGLU, or a mixture of experts.
//
// Order of calls: PackLayer() for its layers and Plan() at the start, then Run() for each.
// Threads: externally synchronised; the work runs on the executor's threads.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <memory>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama_cpu/cpu_executor.h"

namespace kvstore::engine {

class CpuFeedForward {
 public:
  virtual ~CpuFeedForward() = default;

  // Errors: ResourceExhausted.
  virtual absl::Status PackLayer(int64_t layer, const LayerWeights& weights) = 0;
  // For batches of at most `rows_max` rows.
  virtual void Plan(WorkSpace& space, int64_t rows_max) = 0;
  // Rows of `in` ([rows, H], after its norm) to the same rows of `out` ([rows, H]).
  virtual void Run(RowRange rows, int64_t layer, const Activation& in, const Activation& out) = 0;
};

// `config` and `executor` outlive the result.
std::unique_ptr<CpuFeedForward> MakeDenseFeedForward(const ModelConfig& config,
                                                     CpuExecutor& executor);
// Requires: config.experts.
std::unique_ptr<CpuFeedForward> MakeExpertFeedForward(const ModelConfig& config,
                                                      CpuExecutor& executor);

}  // namespace kvstore::engine
