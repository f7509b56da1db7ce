#include "engine_adapter/llama_cuda/cuda_work_space.h"

#include "engine_adapter/llama/rope_table.h"
#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kernels/cuda/rows.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr size_t kGemmBytes = size_t{32} << 20;

int64_t RoundUp(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

}  // namespace

absl::StatusOr<CudaWorkSpace> CudaWorkSpace::Create(const ModelConfig& config, int64_t rows,
                                                    cudaStream_t stream) {
  CudaWorkSpace space;
  RETURN_IF_ERROR(space.MakeRopeTable(config, stream));
  RETURN_IF_ERROR(space.AllocateRows(config, rows, stream));
  ASSIGN_OR_RETURN(space.gemm, DeviceMemory::Allocate(kGemmBytes));
  return space;
}

absl::Status CudaWorkSpace::AllocateRows(const ModelConfig& config, int64_t rows,
                                         cudaStream_t stream) {
  struct Part {
    __nv_bfloat16** data;
    int64_t columns;
  };
  const Part parts[] = {{&x, config.hidden_size},
                        {&normed, config.hidden_size},
                        {&qkv, config.query_size() + 2 * config.kv_size()},
                        {&attended, config.query_size()},
                        {&gate_up, 2 * config.intermediate_size},
                        {&activated, config.intermediate_size}};
  int64_t elements = 0;
  for (const Part& part : parts) elements += RoundUp(rows * part.columns, 128);
  const int64_t logits_bytes = kLogitRows * config.vocab_size * 4;
  ASSIGN_OR_RETURN(memory,
                   DeviceMemory::Allocate(static_cast<size_t>(elements * 2 + logits_bytes)));
  // Rows that pad a product hold what they hold; not NaN at the start, for the sake of debuggers.
  RETURN_IF_RUNTIME_ERROR(cudaMemsetAsync(memory.data(), 0, memory.size(), stream), "work space");
  auto* next = memory.data<__nv_bfloat16>();
  for (const Part& part : parts) {
    *part.data = next;
    next += RoundUp(rows * part.columns, 128);
  }
  logits = reinterpret_cast<float*>(next);
  return absl::OkStatus();
}

absl::Status CudaWorkSpace::MakeRopeTable(const ModelConfig& config, cudaStream_t stream) {
  const RopeTable table(config);
  const auto half = static_cast<size_t>(table.half());
  ASSIGN_OR_RETURN(rope_memory, DeviceMemory::Allocate(static_cast<size_t>(config.max_positions) *
                                                       half * sizeof(float2)));
  rope = rope_memory.data<float2>();
  ASSIGN_OR_RETURN(const DeviceMemory frequencies, DeviceMemory::Allocate(half * sizeof(float)));
  RETURN_IF_RUNTIME_ERROR(cudaMemcpyAsync(frequencies.data(), table.inverse_frequencies().data(),
                                          half * sizeof(float), cudaMemcpyHostToDevice, stream),
                          "rotary frequencies");
  RETURN_IF_RUNTIME_ERROR(
      kernels::cuda::LaunchRopeTable({.inverse_frequencies = frequencies.data<float>(),
                                      .table = rope,
                                      .positions = config.max_positions,
                                      .half = table.half()},
                                     stream),
      "rotary table");
  RETURN_IF_RUNTIME_ERROR(cudaStreamSynchronize(stream), "rotary table");
  return absl::OkStatus();
}

}  // namespace kvstore::engine
