#include "engine_adapter/kvengine/engine_device.h"

#include "engine_adapter/llama_cpu/cpu_backend.h"
#ifdef KVSTORE_HAS_CUDA
#include "engine_adapter/llama_cuda/cuda_backend.h"
#endif

namespace kvstore::engine {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda([[maybe_unused]] const GenerateCommand& command,
                                                  [[maybe_unused]] const ModelConfig& config,
                                                  [[maybe_unused]] const ModelWeights& weights) {
#ifdef KVSTORE_HAS_CUDA
  return CreateCudaBackend(config, weights, {.block_tokens = command.block_tokens});
#else
  return absl::FailedPreconditionError(
      "this kvengine was built without CUDA: configure with -DKVSTORE_CUDA=ON");
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const GenerateCommand& command,
                                                    const ModelConfig& config,
                                                    const ModelWeights& weights) {
  if (command.device == Device::kCuda) return OpenCuda(command, config, weights);
  return CreateCpuBackend(config, weights,
                          {.block_tokens = command.block_tokens,
                           .kv_dtype = command.kv_dtype,
                           .num_threads = command.num_threads});
}

}  // namespace kvstore::engine
