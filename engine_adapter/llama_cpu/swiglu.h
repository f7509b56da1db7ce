// One SwiGLU: down * (silu(gate x) * up x). Shared by the dense feed-forward and the experts.
#pragma once

#include <absl/status/statusor.h>

#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama_cpu/cpu_executor.h"

namespace kvstore::engine {

// Weights of a SwiGLU of width I.
struct PackedSwiglu {
  PackedMatrix gate_up;  // [2 I, H]
  PackedMatrix down;     // [H, I]

  int64_t width() const { return down.k; }
};

// Errors: ResourceExhausted.
absl::StatusOr<PackedSwiglu> PackSwiglu(const TensorView& gate, const TensorView& up,
                                        const TensorView& down, ThreadPool& pool);

// Work space for rows of a SwiGLU.
struct SwigluRows {
  Activation gate_up;    // [rows, 2 I]
  Activation activated;  // [rows, I]

  void Plan(WorkSpace& space, int64_t num_rows, int64_t width);
  // activated = silu(gate) * up.
  void Activate(CpuExecutor& executor, RowRange rows, int64_t width) const;
};

// Rows of `in` to the same rows of `out`, by way of the same rows of `through`.
void RunSwiglu(CpuExecutor& executor, RowRange rows, const PackedSwiglu& weights,
               const Activation& in, const SwigluRows& through, const Activation& out);

}  // namespace kvstore::engine
