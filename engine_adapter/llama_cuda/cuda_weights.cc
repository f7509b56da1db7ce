#include "engine_adapter/llama_cuda/cuda_weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <span>
#include <utility>

#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr size_t kAlignment = 256;
constexpr int64_t kPieceElements = 1 << 22;

// Gives out one allocation piece by piece: first only counts, then copies.
class Uploader {
 public:
  Uploader(__nv_bfloat16* base, cudaStream_t stream) : base_(base), stream_(stream) {}

  size_t num_bytes() const { return next_ * sizeof(__nv_bfloat16); }
  const absl::Status& status() const { return result_; }

  // Tensors one behind the other. Null while counting.
  const __nv_bfloat16* Add(std::initializer_list<const TensorView*> tensors) {
    const size_t begin = next_;
    for (const TensorView* tensor : tensors) {
      if (base_ != nullptr && result_.ok()) result_ = Copy(*tensor, base_ + next_);
      next_ += static_cast<size_t>(tensor->num_elements());
    }
    const size_t step = kAlignment / sizeof(__nv_bfloat16);
    next_ = (next_ + step - 1) / step * step;
    return base_ == nullptr ? nullptr : base_ + begin;
  }

  const __nv_bfloat16* AddOptional(const std::optional<TensorView>& tensor) {
    return tensor.has_value() ? Add({&*tensor}) : nullptr;
  }

 private:
  absl::Status Copy(const TensorView& tensor, __nv_bfloat16* to) {
    const int64_t elements = tensor.num_elements();
    if (tensor.dtype == DType::kBF16) return CopyBytes(tensor.address, elements, to);
    for (int64_t begin = 0; begin < elements; begin += kPieceElements) {
      const int64_t count = std::min(kPieceElements, elements - begin);
      wide_.resize(static_cast<size_t>(count));
      narrow_.resize(static_cast<size_t>(count));
      CopyAsFloat(tensor, begin, wide_);
      std::transform(wide_.begin(), wide_.end(), narrow_.begin(),
                     [](float value) { return __float2bfloat16_rn(value); });
      RETURN_IF_ERROR(CopyBytes(narrow_.data(), count, to + begin));
    }
    return absl::OkStatus();
  }

  // `from` is pageable: it has been read when this returns, but need not have arrived.
  absl::Status CopyBytes(const void* from, int64_t elements, __nv_bfloat16* to) const {
    return RuntimeStatus(
        cudaMemcpyAsync(to, from, static_cast<size_t>(elements) * sizeof(__nv_bfloat16),
                        cudaMemcpyHostToDevice, stream_),
        "copy of weights to the device");
  }

  __nv_bfloat16* const base_;
  const cudaStream_t stream_;
  size_t next_ = 0;
  absl::Status result_;
  std::vector<float> wide_;
  std::vector<__nv_bfloat16> narrow_;
};

CudaLayerWeights AddLayer(const LayerWeights& from, Uploader& to) {
  CudaLayerWeights layer;
  layer.input_norm = to.Add({&from.input_norm});
  layer.qkv = to.Add({&from.q_proj, &from.k_proj, &from.v_proj});
  if (from.q_bias.has_value())
    layer.qkv_bias = to.Add({&*from.q_bias, &*from.k_bias, &*from.v_bias});
  layer.q_norm = to.AddOptional(from.q_norm);
  layer.k_norm = to.AddOptional(from.k_norm);
  layer.o = to.Add({&from.o_proj});
  layer.post_attention_norm = to.Add({&from.post_attention_norm});
  layer.gate_up = to.Add({&from.gate_proj, &from.up_proj});
  layer.down = to.Add({&from.down_proj});
  return layer;
}

}  // namespace

absl::StatusOr<CudaWeights> CudaWeights::Upload(const ModelWeights& weights, cudaStream_t stream) {
  CudaWeights device;
  const auto add_all = [&](Uploader& to) {
    device.layers_.clear();
    for (const LayerWeights& layer : weights.layers())
      device.layers_.push_back(AddLayer(layer, to));
    device.embedding_ = to.Add({&weights.embedding()});
    device.final_norm_ = to.Add({&weights.final_norm()});
    const bool is_tied = weights.lm_head().address == weights.embedding().address;
    device.lm_head_ = is_tied ? device.embedding_ : to.Add({&weights.lm_head()});
  };
  Uploader counter(nullptr, stream);
  add_all(counter);
  ASSIGN_OR_RETURN(device.memory_, DeviceMemory::Allocate(counter.num_bytes()));
  Uploader uploader(device.memory_.data<__nv_bfloat16>(), stream);
  add_all(uploader);
  RETURN_IF_ERROR(uploader.status());
  RETURN_IF_RUNTIME_ERROR(cudaStreamSynchronize(stream), "copy of weights to the device");
  return device;
}

}  // namespace kvstore::engine
