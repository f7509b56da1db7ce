// What a time to first token on a GPU is held against: the arithmetic of the prompt, and the budgets
// of docs/performance.md, which are of one shape on one chip.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "tools/kvbench/report.h"

namespace kvstore::bench {

// Of a dense model.
struct ModelShape {
  uint64_t vocabulary = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0,
           head_dim = 0;

  // Operations of a prefill of `tokens` tokens with logits of the last.
  double PrefillFlops(uint64_t tokens) const;
};

// From config.json. A key that is not there is 0. Errors: InvalidArgument, no such file, or no
// vocabulary.
absl::StatusOr<ModelShape> ReadModelShape(const std::string& model_dir);

// The bf16 rate that its maker states for the device, dense, in FLOP/s. nullopt: not known here.
std::optional<double> StatedFlops(std::string_view device_name);

// P1 (source "dram"), P2 ("cold"), P3 ("gpu", "gpu_restarted") for `tokens` reused tokens.
std::optional<Budget> TtftBudget(const ModelShape& shape, std::string_view device_name,
                                 std::string_view source, uint32_t tokens);

}  // namespace kvstore::bench
