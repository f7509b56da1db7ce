#include "engine_adapter/llama_cuda/cuda_backend.h"

#include <absl/strings/str_cat.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine_adapter/llama_cuda/cuda_pages.h"
#include "engine_adapter/llama_cuda/cuda_weights.h"
#include "engine_adapter/llama_cuda/cuda_work_space.h"
#include "engine_adapter/llama_cuda/device_memory.h"
#include "engine_adapter/llama_cuda/gemm_plans.h"
#include "engine_adapter/llama_cuda/loaded_cublas_lt.h"
#include "engine_adapter/llama_cuda/pass_inputs.h"
#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/rows.h"
#include "kvstore/base/status_macros.h"
#include "transfer/cuda/loaded_driver.h"

namespace kvstore::engine {
namespace {

namespace kernels = kvstore::kernels::cuda;
using Bf16 = __nv_bfloat16;

constexpr int64_t kRowMultiple = GemmPlans::kRowMultiple;
constexpr uint64_t kAddressBytes = uint64_t{256} << 30;  // the most that KvPool describes

int64_t RoundUp(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

class DenseCudaBackend final : public CudaBackend {
 public:
  DenseCudaBackend(const ModelConfig& config, const KvLayout& layout,
                   const CudaBackendOptions& options)
      : config_(config),
        layout_(layout),
        device_(options.device),
        rows_max_(RoundUp(options.pass_tokens_max, kRowMultiple)),
        pass_tokens_max_(options.pass_tokens_max) {}
  ~DenseCudaBackend() override;

  absl::Status Initialize(const ModelWeights& weights, int64_t pool_tokens);

  const ModelConfig& config() const override { return config_; }
  const KvLayout& kv_layout() const override { return layout_; }
  int64_t pass_tokens_max() const override { return pass_tokens_max_; }
  PageMemory& page_memory() override { return *pages_; }
  std::string_view numerics_class() const override { return numerics_class_; }
  std::string_view device_name() const override { return device_name_; }
  absl::Status Forward(const ForwardPass& pass) override;
  const std::shared_ptr<transfer::CudaContext>& context() const override { return context_; }
  const std::shared_ptr<transfer::AddressRange>& addresses() const override { return addresses_; }
  cudaStream_t stream() const override { return stream_; }
  uint32_t multiprocessors() const override { return static_cast<uint32_t>(multiprocessors_); }

 private:
  absl::Status OpenDevice();
  absl::Status MakePages(int64_t pool_tokens);
  absl::Status AllocatePassMemory();
  absl::Status MakePlans();
  absl::Status WarmUp();
  absl::Status Enqueue(const ForwardPass& pass, int64_t keys_max);
  absl::Status RunLayer(const ForwardPass& pass, int64_t layer, int64_t keys_max, bool is_last);
  absl::Status Norm(const Bf16* weight, int64_t row, int64_t rows);
  absl::Status RotateAndStore(const CudaLayerWeights& weights, int64_t layer, int64_t rows);
  absl::Status Attend(int64_t layer, int64_t row, int64_t rows, int64_t keys_max);
  absl::Status FeedForward(const CudaLayerWeights& weights, int64_t row, int64_t rows);
  absl::Status Replay(const ForwardPass& pass, int64_t keys_max);

  int64_t qkv_width() const { return config_.query_size() + 2 * config_.kv_size(); }

  const ModelConfig config_;
  const KvLayout layout_;
  const int device_;
  const int64_t rows_max_;
  const int64_t pass_tokens_max_;
  int multiprocessors_ = 0;
  std::string device_name_;
  std::string numerics_class_;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<transfer::CudaContext> context_;     // both shared with the memory, and with
  std::shared_ptr<transfer::AddressRange> addresses_;  // what moves pages
  CudaWeights weights_;
  std::unique_ptr<CudaPages> pages_;

  LoadedCublasLt lt_;
  GemmPlans::Library library_;
  GemmPlans qkv_plans_, o_plans_, gate_up_plans_, down_plans_, logits_plans_;

  CudaWorkSpace work_;  // with room for kRowMultiple rows behind the last
  DeviceMemory attention_memory_;

  PassInputs inputs_;
  PinnedMemory host_logits_memory_;
  std::map<int64_t, cudaGraphExec_t> decode_graphs_;  // by bound of keys; with logits
};

DenseCudaBackend::~DenseCudaBackend() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  for (const auto& [keys_max, graph] : decode_graphs_) cudaGraphExecDestroy(graph);
  cudaStreamDestroy(stream_);
}

absl::Status DenseCudaBackend::OpenDevice() {
  RETURN_IF_RUNTIME_ERROR(cudaSetDevice(device_), absl::StrCat("CUDA device ", device_));
  cudaDeviceProp properties;
  RETURN_IF_RUNTIME_ERROR(cudaGetDeviceProperties(&properties, device_), "CUDA device");
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", device_, " (", properties.name, ") has compute capability ",
                     properties.major, ".", properties.minor, "; this build's kernels need 9.0"));
  }
  device_name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
  RETURN_IF_RUNTIME_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::CudaDriver> driver, transfer::LoadCudaDriver());
  ASSIGN_OR_RETURN(context_, transfer::CudaContext::Open(std::move(driver), device_));
  ASSIGN_OR_RETURN(addresses_, transfer::AddressRange::Reserve(context_, kAddressBytes));
  return absl::OkStatus();
}

absl::Status DenseCudaBackend::Initialize(const ModelWeights& weights, int64_t pool_tokens) {
  RETURN_IF_ERROR(OpenDevice());
  ASSIGN_OR_RETURN(lt_, LoadedCublasLt::Load());
  ASSIGN_OR_RETURN(weights_, CudaWeights::Upload(weights, stream_));
  ASSIGN_OR_RETURN(work_, CudaWorkSpace::Create(config_, rows_max_ + kRowMultiple, stream_));
  RETURN_IF_ERROR(MakePages(pool_tokens));
  RETURN_IF_ERROR(AllocatePassMemory());
  RETURN_IF_ERROR(MakePlans());
  return WarmUp();
}

// A prefill and a step of decode: the driver loads kernels when they are first launched, and waits
// for all copies in flight then; the first request would pay for that.
absl::Status DenseCudaBackend::WarmUp() {
  constexpr int64_t kTokens = 64;
  if (config_.max_positions <= kTokens) return absl::OkStatus();
  std::vector<PageMemory::Page> pages;
  std::vector<std::byte*> addresses;
  for (int64_t block = 0; block < layout_.BlocksOf(kTokens + 1); ++block) {
    ASSIGN_OR_RETURN(PageMemory::Page page, pages_->Allocate(PageMemory::Fill::kNone));
    addresses.push_back(page.get());
    pages.push_back(std::move(page));
  }
  const std::vector<uint32_t> tokens(kTokens, 0);
  std::vector<float> logits(static_cast<size_t>(config_.vocab_size));
  ForwardPass pass{.token_ids = tokens,
                   .read_pages = addresses.data(),
                   .write_pages = addresses.data(),
                   .logits = logits};
  RETURN_IF_ERROR(Forward(pass));
  pass.token_ids = pass.token_ids.first(1);
  pass.first_position = kTokens;
  return Forward(pass);
}

absl::Status DenseCudaBackend::MakePages(int64_t pool_tokens) {
  int64_t pages = layout_.BlocksOf(pool_tokens > 0 ? pool_tokens : config_.max_positions) + 2;
  if (pool_tokens == 0) {
    size_t free_bytes = 0, total_bytes = 0;
    RETURN_IF_RUNTIME_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes), "device memory");
    const auto fitting = static_cast<int64_t>(free_bytes / 10 * 9) / layout_.page_bytes();
    pages = std::clamp<int64_t>(fitting, 2, pages);
  }
  ASSIGN_OR_RETURN(pages_, CudaPages::Create(layout_, pages, context_, addresses_, stream_));
  return absl::OkStatus();
}

absl::Status DenseCudaBackend::AllocatePassMemory() {
  ASSIGN_OR_RETURN(inputs_, PassInputs::Create(layout_, rows_max_, config_.max_positions));
  ASSIGN_OR_RETURN(host_logits_memory_,
                   PinnedMemory::Allocate(static_cast<size_t>(config_.vocab_size) * 4));
  // The largest that any pass needs: passes with many rows are not split.
  size_t attention_bytes = 0;
  for (int64_t tokens = 1; tokens <= std::min<int64_t>(pass_tokens_max_, 2048); ++tokens) {
    const kernels::AttentionArgs args{
        .num_tokens = static_cast<int32_t>(tokens),
        .keys_max = static_cast<int32_t>(
            RoundUp(config_.max_positions, 2 * kernels::kAttentionSegmentKeys)),
        .kv_heads = static_cast<int32_t>(config_.num_kv_heads),
        .group = static_cast<int32_t>(config_.num_heads / config_.num_kv_heads),
        .head_dim = static_cast<int32_t>(config_.head_dim),
        .block_tokens = static_cast<int32_t>(layout_.block_tokens),
        .scale = 1.0f};
    attention_bytes = std::max(
        attention_bytes,
        kernels::AttentionWorkspaceBytes(args, multiprocessors_, kernels::AttentionSplit::kAuto));
  }
  ASSIGN_OR_RETURN(attention_memory_,
                   DeviceMemory::Allocate(std::max<size_t>(attention_bytes, 256)));
  return absl::OkStatus();
}

absl::Status DenseCudaBackend::MakePlans() {
  library_ = {.lt = &lt_,
              .workspace = work_.gemm.data(),
              .workspace_bytes = work_.gemm.size(),
              .stream = stream_};
  const cublasStatus_t created = lt_.Create(&library_.handle);
  if (created != CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError(
        absl::StrCat("cuBLASLt could not be started: status ", static_cast<int>(created)));
  }
  std::vector<const Bf16*> qkv, o, gate_up, down;
  for (const CudaLayerWeights& layer : weights_.layers()) {
    qkv.push_back(layer.qkv);
    o.push_back(layer.o);
    gate_up.push_back(layer.gate_up);
    down.push_back(layer.down);
  }
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  using Output = GemmShape::Output;
  ASSIGN_OR_RETURN(
      qkv_plans_,
      GemmPlans::Create(
          library_, {.n = qkv_width(), .k = hidden, .has_bias = config_.has_qkv_bias}, rows_max_,
          {.x = work_.normed, .bias = weights_.layers()[0].qkv_bias, .out = work_.qkv}, qkv));
  ASSIGN_OR_RETURN(
      o_plans_,
      GemmPlans::Create(library_,
                        {.n = hidden, .k = config_.query_size(), .output = Output::kBf16AddedTo},
                        rows_max_, {.x = work_.attended, .out = work_.x}, o));
  ASSIGN_OR_RETURN(gate_up_plans_,
                   GemmPlans::Create(library_, {.n = 2 * inner, .k = hidden}, rows_max_,
                                     {.x = work_.normed, .out = work_.gate_up}, gate_up));
  ASSIGN_OR_RETURN(
      down_plans_,
      GemmPlans::Create(library_, {.n = hidden, .k = inner, .output = Output::kBf16AddedTo},
                        rows_max_, {.x = work_.activated, .out = work_.x}, down));
  ASSIGN_OR_RETURN(
      logits_plans_,
      GemmPlans::Create(library_, {.n = config_.vocab_size, .k = hidden, .output = Output::kFloat},
                        CudaWorkSpace::kLogitRows, {.x = work_.normed, .out = work_.logits},
                        {weights_.lm_head()}));
  uint64_t id = 0;
  for (const GemmPlans* plans :
       {&qkv_plans_, &o_plans_, &gate_up_plans_, &down_plans_, &logits_plans_}) {
    id = (id ^ plans->class_id()) * 0x9e3779b97f4a7c15u;
  }
  numerics_class_ = absl::StrCat("cuda-sm90-attn", kernels::kAttentionTileKeys, "x",
                                 kernels::kAttentionSegmentKeys, "-lt",
                                 absl::Hex(id >> 32, absl::kZeroPad8), "-v1");
  return absl::OkStatus();
}

absl::Status DenseCudaBackend::Norm(const Bf16* weight, int64_t row, int64_t rows) {
  const int64_t hidden = config_.hidden_size;
  return RuntimeStatus(kernels::LaunchNorm({.x = work_.x + row * hidden,
                                            .weight = weight,
                                            .out = work_.normed + row * hidden,
                                            .rows = rows,
                                            .n = hidden,
                                            .epsilon = static_cast<float>(config_.rms_norm_eps)},
                                           stream_),
                       "norm");
}

absl::Status DenseCudaBackend::RotateAndStore(const CudaLayerWeights& weights, int64_t layer,
                                              int64_t rows) {
  return RuntimeStatus(
      kernels::LaunchRopeAndStore({.qkv = work_.qkv,
                                   .rows = rows,
                                   .num_tokens = static_cast<int32_t>(rows),
                                   .heads = static_cast<int32_t>(config_.num_heads),
                                   .kv_heads = static_cast<int32_t>(config_.num_kv_heads),
                                   .head_dim = static_cast<int32_t>(config_.head_dim),
                                   .table = work_.rope,
                                   .positions = inputs_.device().positions,
                                   .q_norm = weights.q_norm,
                                   .k_norm = weights.k_norm,
                                   .norm_epsilon = static_cast<float>(config_.rms_norm_eps),
                                   .pages = inputs_.device().write_pages,
                                   .pages_stride = inputs_.blocks_max(),
                                   .block_tokens = static_cast<int32_t>(layout_.block_tokens),
                                   .k_offset = layout_.k_offset(layer),
                                   .v_offset = layout_.v_offset(layer)},
                                  stream_),
      "rotary embedding");
}

// Rows [row, row + rows) of the pass; the positions behind them are bounded by `keys_max`.
absl::Status DenseCudaBackend::Attend(int64_t layer, int64_t row, int64_t rows, int64_t keys_max) {
  return RuntimeStatus(
      kernels::LaunchAttention(
          {.q = work_.qkv + row * qkv_width(),
           .q_stride = qkv_width(),
           .out = work_.attended + row * config_.query_size(),
           .out_stride = config_.query_size(),
           .pages = inputs_.device().read_pages,
           .pages_stride = inputs_.blocks_max(),
           .first_positions = inputs_.device().positions + row,
           .num_tokens = static_cast<int32_t>(rows),
           .keys_max = static_cast<int32_t>(keys_max),
           .kv_heads = static_cast<int32_t>(config_.num_kv_heads),
           .group = static_cast<int32_t>(config_.num_heads / config_.num_kv_heads),
           .head_dim = static_cast<int32_t>(config_.head_dim),
           .block_tokens = static_cast<int32_t>(layout_.block_tokens),
           .k_offset = layout_.k_offset(layer),
           .v_offset = layout_.v_offset(layer),
           .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim))),
           .workspace = attention_memory_.data<float>()},
          pages_->pool(), multiprocessors_, kernels::AttentionSplit::kAuto, stream_),
      "attention");
}

absl::Status DenseCudaBackend::FeedForward(const CudaLayerWeights& weights, int64_t row,
                                           int64_t rows) {
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  RETURN_IF_ERROR(gate_up_plans_.Run(
      rows, {.x = work_.normed + row * hidden, .w = weights.gate_up, .out = work_.gate_up},
      stream_));
  RETURN_IF_RUNTIME_ERROR(
      kernels::LaunchSwiglu(
          {.gate_up = work_.gate_up, .out = work_.activated, .rows = rows, .n = inner}, stream_),
      "activation");
  return down_plans_.Run(
      rows, {.x = work_.activated, .w = weights.down, .out = work_.x + row * hidden}, stream_);
}

// The last layer computes its output only for the last row, since nothing else reads it.
absl::Status DenseCudaBackend::RunLayer(const ForwardPass& pass, int64_t layer, int64_t keys_max,
                                        bool is_last) {
  const CudaLayerWeights& weights = weights_.layers()[static_cast<size_t>(layer)];
  const auto rows = static_cast<int64_t>(pass.token_ids.size());
  RETURN_IF_ERROR(Norm(weights.input_norm, 0, rows));
  RETURN_IF_ERROR(qkv_plans_.Run(
      rows, {.x = work_.normed, .w = weights.qkv, .bias = weights.qkv_bias, .out = work_.qkv},
      stream_));
  RETURN_IF_ERROR(RotateAndStore(weights, layer, rows));
  if (pass.layer_gate && !pass.layer_gate(layer)) {
    return absl::AbortedError(absl::StrCat("the pass was ended before layer ", layer));
  }
  if (is_last && pass.logits.empty()) return absl::OkStatus();
  const int64_t row = is_last ? rows - 1 : 0, rows_out = rows - row;
  RETURN_IF_ERROR(Attend(layer, row, rows_out, keys_max));
  RETURN_IF_ERROR(o_plans_.Run(rows_out,
                               {.x = work_.attended + row * config_.query_size(),
                                .w = weights.o,
                                .out = work_.x + row * config_.hidden_size},
                               stream_));
  RETURN_IF_ERROR(Norm(weights.post_attention_norm, row, rows_out));
  return FeedForward(weights, row, rows_out);
}

absl::Status DenseCudaBackend::Enqueue(const ForwardPass& pass, int64_t keys_max) {
  const auto rows = static_cast<int64_t>(pass.token_ids.size());
  const int64_t hidden = config_.hidden_size;
  RETURN_IF_RUNTIME_ERROR(kernels::LaunchEmbed({.table = weights_.embedding(),
                                                .tokens = inputs_.device().tokens,
                                                .out = work_.x,
                                                .rows = rows,
                                                .n = hidden},
                                               stream_),
                          "embedding");
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    RETURN_IF_ERROR(RunLayer(pass, layer, keys_max, layer + 1 == config_.num_layers));
  }
  if (pass.logits.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(Norm(weights_.final_norm(), rows - 1, 1));
  RETURN_IF_ERROR(logits_plans_.Run(
      1, {.x = work_.normed + (rows - 1) * hidden, .w = weights_.lm_head(), .out = work_.logits},
      stream_));
  RETURN_IF_RUNTIME_ERROR(cudaMemcpyAsync(host_logits_memory_.data(), work_.logits,
                                          static_cast<size_t>(config_.vocab_size) * sizeof(float),
                                          cudaMemcpyDeviceToHost, stream_),
                          "logits");
  return absl::OkStatus();
}

// Runs the graph of one token whose keys are at most `keys_max`; captures it the first time.
absl::Status DenseCudaBackend::Replay(const ForwardPass& pass, int64_t keys_max) {
  cudaGraphExec_t& executable = decode_graphs_[keys_max];
  if (executable == nullptr) {
    RETURN_IF_RUNTIME_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                            "decode graph");
    const absl::Status enqueued = Enqueue(pass, keys_max);
    cudaGraph_t graph = nullptr;
    const cudaError_t captured = cudaStreamEndCapture(stream_, &graph);
    RETURN_IF_ERROR(enqueued);
    RETURN_IF_RUNTIME_ERROR(captured, "decode graph");
    const cudaError_t instantiated = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    RETURN_IF_RUNTIME_ERROR(instantiated, "decode graph");
  }
  RETURN_IF_RUNTIME_ERROR(cudaGraphLaunch(executable, stream_), "decode graph");
  return absl::OkStatus();
}

absl::Status DenseCudaBackend::Forward(const ForwardPass& pass) {
  RETURN_IF_ERROR(CheckPass(pass, config_, pass_tokens_max_));
  RETURN_IF_RUNTIME_ERROR(cudaSetDevice(device_), "CUDA device");
  const Timeline::Time begin = Timeline::Now();
  const auto rows = static_cast<int64_t>(pass.token_ids.size());
  const int64_t keys = pass.first_position + rows;
  RETURN_IF_ERROR(inputs_.Upload(pass, stream_));
  absl::Status status;
  if (rows == 1 && !pass.logits.empty() && !pass.layer_gate) {
    int64_t keys_max = kernels::kAttentionSegmentKeys;
    while (keys_max < keys) keys_max *= 2;
    status = Replay(
        pass, std::min(keys_max, RoundUp(config_.max_positions, kernels::kAttentionSegmentKeys)));
  } else {
    status = Enqueue(pass, keys);
  }
  // Also after an error: what was enqueued reads the inputs and writes pages.
  const cudaError_t done = cudaStreamSynchronize(stream_);
  RETURN_IF_ERROR(status);
  RETURN_IF_RUNTIME_ERROR(done, "a pass");
  if (!pass.logits.empty()) {
    std::memcpy(pass.logits.data(), host_logits_memory_.data(), pass.logits.size_bytes());
  }
  if (pass.timeline != nullptr) {
    pass.timeline->Add(Timeline::Track::kCompute, "pass", pass.first_position, begin,
                       Timeline::Now());
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const ModelConfig& config, const CudaBackendOptions& options) {
  if (config.experts || config.latent || config.rope_scaling.attention_factor != 1) {
    return absl::InvalidArgumentError(
        "the CUDA back-end computes no experts, latent attention or yarn; --device cpu does");
  }
  if (options.pass_tokens_max < 1 || options.pass_tokens_max > CudaBackendOptions::kPassTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("pass_tokens_max is ", options.pass_tokens_max,
                                                   "; valid are 1 to ",
                                                   CudaBackendOptions::kPassTokensMax));
  }
  if (options.pool_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool_tokens is ", options.pool_tokens, "; valid is 0 or more"));
  }
  if (options.block_tokens < 64 || options.block_tokens % 64 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("block_tokens is ", options.block_tokens,
                                                   "; the CUDA back-end needs a multiple of 64"));
  }
  if (config.head_dim != 64 && config.head_dim != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", config.head_dim, "; the CUDA back-end computes 64 and 128"));
  }
  if (config.hidden_size % 8 != 0 || config.intermediate_size % 8 != 0 ||
      config.vocab_size % 8 != 0 || config.hidden_size > kernels::kNormWidthMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden_size ", config.hidden_size, ", intermediate_size ",
                     config.intermediate_size, ", vocab_size ", config.vocab_size,
                     ": the CUDA back-end needs multiples of 8, and a hidden_size of at most ",
                     kernels::kNormWidthMax));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CreateCudaBackend(const ModelConfig& config,
                                                               const ModelWeights& weights,
                                                               const CudaBackendOptions& options) {
  RETURN_IF_ERROR(CheckOptions(config, options));
  const KvLayout layout{.num_layers = config.num_layers,
                        .num_kv_heads = config.num_kv_heads,
                        .head_dim = config.head_dim,
                        .dtype = KvDtype::kBf16,
                        .block_tokens = options.block_tokens};
  RETURN_IF_ERROR(layout.Validate());
  auto backend = std::make_unique<DenseCudaBackend>(config, layout, options);
  RETURN_IF_ERROR(backend->Initialize(weights, options.pool_tokens));
  return std::unique_ptr<CudaBackend>(std::move(backend));
}

}  // namespace kvstore::engine
