#include "engine_adapter/llama_cpu/cpu_backend.h"

#include <absl/strings/str_cat.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "engine_adapter/llama_cpu/cpu_attention.h"
#include "engine_adapter/llama_cpu/cpu_batch.h"
#include "engine_adapter/llama_cpu/cpu_executor.h"
#include "engine_adapter/llama_cpu/cpu_feed_forward.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Rows whose logits are computed in one product: all tile shapes of one read of the weights.
constexpr int64_t kLogitRows = CpuExecutor::kNarrowRows;

int AvailableCpus() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// Query heads that read one head of keys.
int64_t GroupOf(const ModelConfig& config) {
  return config.latent.has_value() ? config.num_heads : config.num_heads / config.num_kv_heads;
}

// What a layer has beside its attention.
struct Layer {
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  CpuFeedForward* feed_forward = nullptr;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const ModelWeights& weights,
             const CpuBackendOptions& options, const KvLayout& layout)
      : config_(config),
        source_(weights),
        layout_(layout),
        pages_(layout),
        rows_max_(options.pass_tokens_max),
        executor_(options.kernels != nullptr ? *options.kernels : kernels::BestKernels(),
                  options.num_threads > 0 ? options.num_threads : AvailableCpus()),
        batch_(rows_max_, kernels::kAttentionRowsMax / GroupOf(config)) {}

  absl::Status Initialize() {
    RETURN_IF_ERROR(PackWeights());
    return PlanWorkSpace();
  }

  const ModelConfig& config() const override { return config_; }
  const KvLayout& kv_layout() const override { return layout_; }
  int64_t pass_tokens_max() const override { return rows_max_; }
  PageMemory& page_memory() override { return pages_; }
  std::string_view numerics_class() const override { return "cpu-fma-chain-attn128-v1"; }
  std::string_view device_name() const override { return executor_.kernels().name; }
  absl::Status Forward(const ForwardPass& pass) override { return ForwardBatch({&pass, 1}); }
  absl::Status ForwardBatch(std::span<const ForwardPass> passes) override;

 private:
  absl::Status PackWeights();
  absl::Status PlanWorkSpace();
  void Embed(const PlacedPass& placed);
  void Norm(RowRange rows, const Activation* residual, const std::vector<float>& weight);
  RowRange KeepLogitRows();
  bool RunLayer(int64_t layer, OutputRows wanted);
  void ComputeLogits();

  const ModelConfig config_;
  const ModelWeights& source_;
  const KvLayout layout_;
  HostPages pages_;
  const int64_t rows_max_;
  CpuExecutor executor_;
  CpuBatch batch_;  // in progress

  std::unique_ptr<CpuAttention> attention_;
  std::unique_ptr<CpuFeedForward> dense_;  // these two null where no layer is of their kind
  std::unique_ptr<CpuFeedForward> experts_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;  // [H]
  PackedMatrix lm_head_;           // [vocab, H]

  WorkSpace work_space_;  // everything below
  Activation x_;          // [rows, H] residual stream, without the last projection
  Activation normed_;     // [rows, H]
  Activation
      projected_;      // [rows, H] what attention or feed-forward gave; the next norm adds it to x_
  Activation logits_;  // [min(rows, kLogitRows), vocab]
};

absl::Status CpuBackend::PackWeights() {
  attention_ = config_.latent.has_value() ? MakeLatentAttention(config_, layout_, executor_)
                                          : MakeGroupedQueryAttention(config_, layout_, executor_);
  if (!config_.HasExperts(0)) dense_ = MakeDenseFeedForward(config_, executor_);
  if (config_.HasExperts(config_.num_layers - 1)) {
    experts_ = MakeExpertFeedForward(config_, executor_);
  }
  for (int64_t index = 0; index < config_.num_layers; ++index) {
    const LayerWeights& from = source_.layers()[static_cast<size_t>(index)];
    Layer layer{.input_norm = Widen(from.input_norm),
                .post_attention_norm = Widen(from.post_attention_norm),
                .feed_forward = config_.HasExperts(index) ? experts_.get() : dense_.get()};
    RETURN_IF_ERROR(attention_->PackLayer(from));
    RETURN_IF_ERROR(layer.feed_forward->PackLayer(index, from));
    layers_.push_back(std::move(layer));
  }
  final_norm_ = Widen(source_.final_norm());
  ASSIGN_OR_RETURN(lm_head_, PackFused({&source_.lm_head()}, executor_.pool()));
  return absl::OkStatus();
}

absl::Status CpuBackend::PlanWorkSpace() {
  work_space_.AddRows(x_, rows_max_, config_.hidden_size);
  work_space_.AddRows(normed_, rows_max_, config_.hidden_size);
  work_space_.AddRows(projected_, rows_max_, config_.hidden_size);
  work_space_.AddRows(logits_, std::min(rows_max_, kLogitRows), config_.vocab_size);
  attention_->Plan(work_space_, rows_max_);
  if (dense_ != nullptr) dense_->Plan(work_space_, rows_max_);
  if (experts_ != nullptr) experts_->Plan(work_space_, rows_max_);
  executor_.Plan(work_space_, layout_.head_dim);
  return work_space_.Allocate();
}

void CpuBackend::Embed(const PlacedPass& placed) {
  const TensorView& table = source_.embedding();
  const int64_t hidden = config_.hidden_size;
  int64_t row = placed.rows.begin;
  for (const uint32_t token : placed.pass->token_ids) {
    CopyAsFloat(table, token * hidden, {x_.row(row++), static_cast<size_t>(hidden)});
  }
}

void CpuBackend::Norm(RowRange rows, const Activation* residual, const std::vector<float>& weight) {
  const kernels::NormArgs args{.x = x_.data,
                               .y = residual != nullptr ? residual->data : nullptr,
                               .weight = weight.data(),
                               .out = normed_.data,
                               .x_stride = x_.stride,
                               .y_stride = residual != nullptr ? residual->stride : 0,
                               .out_stride = normed_.stride,
                               .n = config_.hidden_size,
                               .epsilon = static_cast<float>(config_.rms_norm_eps)};
  executor_.ForRows(
      rows, [&](int64_t begin, int64_t end) { executor_.kernels().norm(args, begin, end); });
}

// Moves the rows whose logits are wanted to the front of what the last layer still reads, in the
// order of the passes.
RowRange CpuBackend::KeepLogitRows() {
  int64_t kept = 0;
  for (const PlacedPass& placed : batch_.passes()) {
    if (!placed.has_logits()) continue;
    const int64_t row = placed.rows.end - 1;
    if (row != kept) {
      std::copy_n(x_.row(row), config_.hidden_size, x_.row(kept));
      attention_->MoveRow(row, kept);
    }
    ++kept;
  }
  return {0, kept};
}

// Returns false when the gate ended the pass.
bool CpuBackend::RunLayer(int64_t index, OutputRows wanted) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  RowRange rows{0, batch_.num_rows()};
  Norm(rows, index == 0 ? nullptr : &projected_, layer.input_norm);
  attention_->Project(batch_, index, normed_);
  const auto& gate = batch_.passes().front().pass->layer_gate;
  if (gate && !gate(index)) return false;
  if (wanted == OutputRows::kOfLogits) batch_.CutAttention(wanted);
  if (batch_.attention_pieces().empty()) return true;
  attention_->Attend(batch_, index);
  if (wanted == OutputRows::kOfLogits) rows = KeepLogitRows();
  attention_->Output(rows, index, projected_);
  Norm(rows, &projected_, layer.post_attention_norm);
  layer.feed_forward->Run(rows, index, normed_, projected_);
  return true;
}

// KeepLogitRows has put the rows to the front. A product for several passes needs its result in one
// piece, so that goes through memory of our own, kLogitRows at a time.
void CpuBackend::ComputeLogits() {
  std::array<float*, kLogitRows> out;
  int64_t done = 0;
  int64_t pending = 0;
  const auto flush = [&] {
    const RowRange rows{done, done + pending};
    Norm(rows, &projected_, final_norm_);
    const bool is_direct = pending == 1;
    const Activation logits{is_direct ? out[0] : logits_.data, logits_.stride};
    executor_.Multiply({0, pending}, normed_.FromRow(done), lm_head_, logits);
    for (int64_t row = 0; row < pending && !is_direct; ++row) {
      std::copy_n(logits_.row(row), config_.vocab_size, out[static_cast<size_t>(row)]);
    }
    done += pending;
    pending = 0;
  };
  for (const PlacedPass& placed : batch_.passes()) {
    if (!placed.has_logits()) continue;
    out[static_cast<size_t>(pending++)] = placed.pass->logits.data();
    if (pending == kLogitRows) flush();
  }
  if (pending > 0) flush();
}

absl::Status CpuBackend::ForwardBatch(std::span<const ForwardPass> passes) {
  RETURN_IF_ERROR(CheckBatch(passes, config_, rows_max_));
  batch_.Place(passes);
  for (const PlacedPass& placed : batch_.passes()) Embed(placed);
  attention_->Begin(batch_);
  batch_.CutAttention(OutputRows::kAll);
  Timeline* const timeline = passes.front().timeline;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const Timeline::Time begin = Timeline::Now();
    const bool is_last = layer + 1 == config_.num_layers;
    if (!RunLayer(layer, is_last ? OutputRows::kOfLogits : OutputRows::kAll)) {
      return absl::AbortedError(absl::StrCat("the pass was ended before layer ", layer));
    }
    if (timeline != nullptr) {
      timeline->Add(Timeline::Track::kCompute, "layer", layer, begin, Timeline::Now());
    }
  }
  ComputeLogits();
  return absl::OkStatus();
}

absl::Status CheckOptions(const ModelConfig& config, const CpuBackendOptions& options) {
  if (options.num_threads < 0 || options.num_threads > CpuBackendOptions::kThreadsMax) {
    return absl::InvalidArgumentError(absl::StrCat("num_threads is ", options.num_threads,
                                                   "; valid are 0 (all) to ",
                                                   CpuBackendOptions::kThreadsMax));
  }
  if (options.pass_tokens_max < 1 || options.pass_tokens_max > CpuBackendOptions::kPassTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("pass_tokens_max is ", options.pass_tokens_max,
                                                   "; valid are 1 to ",
                                                   CpuBackendOptions::kPassTokensMax));
  }
  const int64_t row = config.latent.has_value() ? config.latent->cached_size() : config.head_dim;
  if (config.latent.has_value() && config.latent->kv_rank % 16 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("kv_lora_rank is ", config.latent->kv_rank,
                                                   "; the CPU back-end needs a multiple of 16"));
  }
  if (row % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.latent.has_value() ? "kv_lora_rank and qk_rope_head_dim are together "
                                               : "head_dim is ",
                     row, "; the CPU back-end needs a multiple of 16"));
  }
  if (GroupOf(config) > kernels::kAttentionRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat(GroupOf(config),
                                                   " query heads share a kv head; at most ",
                                                   kernels::kAttentionRowsMax, " may"));
  }
  return absl::OkStatus();
}

KvLayout LayoutOf(const ModelConfig& config, const CpuBackendOptions& options) {
  const bool is_latent = config.latent.has_value();
  return {.order = is_latent ? KvOrder::kLatent : KvOrder::kHeads,
          .num_layers = config.num_layers,
          .num_kv_heads = is_latent ? 1 : config.num_kv_heads,
          .head_dim = is_latent ? config.latent->cached_size() : config.head_dim,
          .dtype = options.kv_dtype,
          .block_tokens = options.block_tokens};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const ModelConfig& config,
                                                          const ModelWeights& weights,
                                                          const CpuBackendOptions& options) {
  RETURN_IF_ERROR(CheckOptions(config, options));
  const KvLayout layout = LayoutOf(config, options);
  RETURN_IF_ERROR(layout.Validate());
  auto backend = std::make_unique<CpuBackend>(config, weights, options, layout);
  RETURN_IF_ERROR(backend->Initialize());
  return backend;
}

}  // namespace kvstore::engine
