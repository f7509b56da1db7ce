#include "engine_adapter/kvengine/engine_device.h"

#include <utility>

#include "engine_adapter/llama_cpu/cpu_backend.h"
#include "kvstore/base/status_macros.h"
#ifdef KVSTORE_HAS_CUDA
#include "engine_adapter/connector_cuda/cuda_page_mover.h"
#include "engine_adapter/llama_cuda/cuda_backend.h"
#endif

namespace kvstore::engine {
namespace {

absl::StatusOr<EngineDevice> OpenCuda([[maybe_unused]] const EngineOptions& options,
                                      [[maybe_unused]] const ModelConfig& config,
                                      [[maybe_unused]] const ModelWeights& weights) {
#ifdef KVSTORE_HAS_CUDA
  ASSIGN_OR_RETURN(std::unique_ptr<CudaBackend> backend,
                   CreateCudaBackend(config, weights, {.block_tokens = options.block_tokens}));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaPageMover> mover,
                   CudaPageMover::Create({.context = backend->context(),
                                          .addresses = backend->addresses(),
                                          .compute_stream = backend->stream(),
                                          .layout = backend->kv_layout(),
                                          .multiprocessors = backend->multiprocessors(),
                                          .make_checksums = MakeKernelChecksums()}));
  std::shared_ptr<client::DeviceSlabs> slabs = mover->device_slabs();
  return EngineDevice{std::move(backend), std::move(mover), std::move(slabs)};
#else
  return absl::FailedPreconditionError(
      "this kvengine was built without CUDA: configure with -DKVSTORE_CUDA=ON");
#endif
}

}  // namespace

absl::StatusOr<EngineDevice> OpenDevice(const EngineOptions& options, const ModelConfig& config,
                                        const ModelWeights& weights) {
  if (options.device == Device::kCuda) return OpenCuda(options, config, weights);
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                   CreateCpuBackend(config, weights,
                                    {.block_tokens = options.block_tokens,
                                     .kv_dtype = options.kv_dtype,
                                     .num_threads = options.num_threads}));
  return EngineDevice{std::move(backend), std::make_unique<HostPageMover>(), nullptr};
}

}  // namespace kvstore::engine
