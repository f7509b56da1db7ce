// One SwiGLU a layer.
#include <vector>

#include "engine_adapter/llama_cpu/cpu_feed_forward.h"
#include "engine_adapter/llama_cpu/swiglu.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

class DenseFeedForward final : public CpuFeedForward {
 public:
  DenseFeedForward(const ModelConfig& config, CpuExecutor& executor)
      : config_(config), executor_(executor), layers_(static_cast<size_t>(config.num_layers)) {}

  absl::Status PackLayer(int64_t layer, const LayerWeights& from) override {
    ASSIGN_OR_RETURN(layers_[static_cast<size_t>(layer)],
                     PackSwiglu(from.gate_proj, from.up_proj, from.down_proj, executor_.pool()));
    return absl::OkStatus();
  }
  void Plan(WorkSpace& space, int64_t rows_max) override {
    rows_.Plan(space, rows_max, config_.intermediate_size);
  }
  void Run(RowRange rows, int64_t layer, const Activation& in, const Activation& out) override {
    RunSwiglu(executor_, rows, layers_[static_cast<size_t>(layer)], in, rows_, out);
  }

 private:
  const ModelConfig& config_;
  CpuExecutor& executor_;
  std::vector<PackedSwiglu> layers_;
  SwigluRows rows_;
};

}  // namespace

std::unique_ptr<CpuFeedForward> MakeDenseFeedForward(const ModelConfig& config,
                                                     CpuExecutor& executor) {
  return std::make_unique<DenseFeedForward>(config, executor);
}

}  // namespace kvstore::engine
