#include "engine_adapter/llama_cpu/swiglu.h"

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::StatusOr<PackedSwiglu> PackSwiglu(const TensorView& gate, const TensorView& up,
                                        const TensorView& down, ThreadPool& pool) {
  PackedSwiglu packed;
  ASSIGN_OR_RETURN(packed.gate_up, PackFused({&gate, &up}, pool));
  ASSIGN_OR_RETURN(packed.down, PackFused({&down}, pool));
  return packed;
}

void SwigluRows::Plan(WorkSpace& space, int64_t num_rows, int64_t width) {
  space.AddRows(gate_up, num_rows, 2 * width);
  space.AddRows(activated, num_rows, width);
}

void SwigluRows::Activate(CpuExecutor& executor, RowRange rows, int64_t width) const {
  const kernels::SwigluArgs args{.gate_up = gate_up.data,
                                 .gate_up_stride = gate_up.stride,
                                 .out = activated.data,
                                 .out_stride = activated.stride,
                                 .n = width};
  executor.ForRows(
      rows, [&](int64_t begin, int64_t end) { executor.kernels().swiglu(args, begin, end); });
}

void RunSwiglu(CpuExecutor& executor, RowRange rows, const PackedSwiglu& weights,
               const Activation& in, const SwigluRows& through, const Activation& out) {
  executor.Multiply(rows, in, weights.gate_up, through.gate_up);
  through.Activate(executor, rows, weights.width());
  executor.Multiply(rows, through.activated, weights.down, out);
}

}  // namespace kvstore::engine
