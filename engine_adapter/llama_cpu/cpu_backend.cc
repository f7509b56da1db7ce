#include "engine_adapter/llama_cpu/cpu_backend.h"

#include <absl/strings/str_cat.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "engine_adapter/llama/rope_table.h"
#include "engine_adapter/llama_cpu/cpu_weights.h"
#include "engine_adapter/llama_cpu/thread_pool.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

using kernels::CpuKernels;

// Rows of activations that a GEMM piece keeps in the second-level cache: 192 rows x 256 columns of
// float32 are 192 KiB.
constexpr int64_t kGemmRows = 192;
constexpr int64_t kGemmRowMultiple = 12;  // of the register tiles of every instruction set
constexpr int64_t kRowsPerPiece = 16;     // of norm, rope and activation
// Rows whose logits are computed in one product: all tile shapes of one read of the weights.
constexpr int64_t kLogitRows = kGemmRowMultiple;
// Row strides that are powers of two would put the rows of a register tile into the same cache set.
constexpr int64_t kStridePad = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// Activations of one batch: [rows, columns] of float32 with a padded stride.
struct Activation {
  float* data = nullptr;
  int64_t stride = 0;

  float* row(int64_t index) const { return data + index * stride; }
};

// A pass and the rows of the activations that are its tokens.
struct PlacedPass {
  const ForwardPass* pass = nullptr;
  RowRange rows;

  bool has_logits() const { return !pass->logits.empty(); }
};

// Tokens [token_begin, token_end) of a pass, counted from its first one.
struct AttentionPiece {
  const PlacedPass* placed = nullptr;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

// The rows that a layer computes an output for: the last layer's are read by the logits alone.
enum class OutputRows : uint8_t { kAll, kOfLogits };

int AvailableCpus() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const ModelWeights& weights,
             const CpuBackendOptions& options, const KvLayout& layout)
      : config_(config),
        source_(weights),
        layout_(layout),
        pages_(layout),
        kernels_(options.kernels != nullptr ? *options.kernels : kernels::BestKernels()),
        rows_max_(options.pass_tokens_max),
        rope_(config),
        pool_(options.num_threads > 0 ? options.num_threads : AvailableCpus()) {}

  absl::Status Initialize() {
    ASSIGN_OR_RETURN(weights_, CpuWeights::Pack(source_, pool_));
    return AllocateWorkSpace();
  }

  const ModelConfig& config() const override { return config_; }
  const KvLayout& kv_layout() const override { return layout_; }
  int64_t pass_tokens_max() const override { return rows_max_; }
  PageMemory& page_memory() override { return pages_; }
  std::string_view numerics_class() const override { return "cpu-fma-chain-attn128-v1"; }
  std::string_view device_name() const override { return kernels_.name; }
  absl::Status Forward(const ForwardPass& pass) override { return ForwardBatch({&pass, 1}); }
  absl::Status ForwardBatch(std::span<const ForwardPass> passes) override;

 private:
  absl::Status AllocateWorkSpace();
  void PlacePasses(std::span<const ForwardPass> passes);
  void Embed(const PlacedPass& placed);
  void FillRope(const PlacedPass& placed);
  void Norm(RowRange rows, const Activation* residual, const std::vector<float>& weight);
  void Gemm(RowRange rows, const Activation& a, const PackedMatrix& matrix, const Activation& c);
  void RotateAndStore(const PlacedPass& placed, int64_t layer);
  void CutAttention(OutputRows wanted);
  void Attend(int64_t layer);
  RowRange KeepLogitRows();
  void FeedForward(RowRange rows, const CpuLayerWeights& layer);
  bool RunLayer(int64_t layer, OutputRows wanted);
  void ComputeLogits();
  template <typename Call>
  void ForRows(RowRange rows, Call call);
  float* scratch(int thread) { return scratch_ + thread * scratch_floats_; }

  const ModelConfig config_;
  const ModelWeights& source_;
  const KvLayout layout_;
  HostPages pages_;
  const CpuKernels& kernels_;
  const int64_t rows_max_;
  const RopeTable rope_;
  ThreadPool pool_;
  CpuWeights weights_;

  // The batch in progress; room for rows_max_ of each from the start.
  std::vector<PlacedPass> placed_;
  std::vector<AttentionPiece> attention_pieces_;
  int64_t rows_ = 0;

  AlignedBuffer work_space_;  // everything below
  Activation x_;              // [rows, H] residual stream, without the last projection
  Activation normed_;         // [rows, H]
  Activation qkv_;            // [rows, Q + 2 KV]
  Activation attended_;       // [rows, Q]
  Activation projected_;      // [rows, H] output of o or down, added to x_ by the next norm
  Activation gate_up_;        // [rows, 2 I]
  Activation activated_;      // [rows, I]
  Activation logits_;         // [min(rows, kLogitRows), vocab]
  float* cosine_ = nullptr;   // [rows, head_dim / 2]
  float* sine_ = nullptr;
  float* scratch_ = nullptr;  // [threads, scratch_floats_]
  int64_t scratch_floats_ = 0;
};

absl::Status CpuBackend::AllocateWorkSpace() {
  const auto attention = kernels::AttentionScratchFloats(config_.head_dim);
  scratch_floats_ = RoundUp(std::max(attention, kernels::kGemmScratchFloats), 1024);
  struct Part {
    float** data;
    int64_t floats;
  };
  std::vector<Part> parts;
  const auto add_rows = [&](Activation& activation, int64_t rows, int64_t columns) {
    activation.stride = RoundUp(columns, 16) + kStridePad;
    parts.push_back({&activation.data, rows * activation.stride});
  };
  const auto add = [&](Activation& activation, int64_t columns) {
    add_rows(activation, rows_max_, columns);
  };
  placed_.reserve(static_cast<size_t>(rows_max_));
  attention_pieces_.reserve(static_cast<size_t>(rows_max_));
  add(x_, config_.hidden_size);
  add(normed_, config_.hidden_size);
  add(qkv_, config_.query_size() + 2 * config_.kv_size());
  add(attended_, config_.query_size());
  add(projected_, config_.hidden_size);
  add(gate_up_, 2 * config_.intermediate_size);
  add(activated_, config_.intermediate_size);
  add_rows(logits_, std::min(rows_max_, kLogitRows), config_.vocab_size);
  parts.push_back({&cosine_, rows_max_ * rope_.half()});
  parts.push_back({&sine_, rows_max_ * rope_.half()});
  parts.push_back({&scratch_, pool_.num_threads() * scratch_floats_});
  int64_t total = 0;
  for (const Part& part : parts) total += RoundUp(part.floats, 16);
  ASSIGN_OR_RETURN(work_space_,
                   AlignedBuffer::Allocate(static_cast<size_t>(total) * sizeof(float)));
  auto* next = reinterpret_cast<float*>(work_space_.data());
  for (const Part& part : parts) {
    *part.data = next;
    next += RoundUp(part.floats, 16);
  }
  return absl::OkStatus();
}

template <typename Call>
void CpuBackend::ForRows(RowRange rows, Call call) {
  pool_.Run(CeilDiv(rows.size(), kRowsPerPiece), [&](int64_t piece, int) {
    const int64_t begin = rows.begin + piece * kRowsPerPiece;
    call(begin, std::min(begin + kRowsPerPiece, rows.end));
  });
}

// One row after another, each pass its rows.
void CpuBackend::PlacePasses(std::span<const ForwardPass> passes) {
  placed_.clear();
  rows_ = 0;
  for (const ForwardPass& pass : passes) {
    const auto tokens = static_cast<int64_t>(pass.token_ids.size());
    placed_.push_back({.pass = &pass, .rows = {rows_, rows_ + tokens}});
    rows_ += tokens;
  }
}

void CpuBackend::Embed(const PlacedPass& placed) {
  const TensorView& table = source_.embedding();
  const int64_t hidden = config_.hidden_size;
  int64_t row = placed.rows.begin;
  for (const uint32_t token : placed.pass->token_ids) {
    CopyAsFloat(table, token * hidden, {x_.row(row++), static_cast<size_t>(hidden)});
  }
}

void CpuBackend::FillRope(const PlacedPass& placed) {
  ForRows(placed.rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      rope_.Fill(placed.pass->first_position + row - placed.rows.begin,
                 cosine_ + row * rope_.half(), sine_ + row * rope_.half());
    }
  });
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
  ForRows(rows, [&](int64_t begin, int64_t end) { kernels_.norm(args, begin, end); });
}

void CpuBackend::Gemm(RowRange rows, const Activation& a, const PackedMatrix& matrix,
                      const Activation& c) {
  const kernels::GemmArgs args{.a = a.data,
                               .a_stride = a.stride,
                               .panels = matrix.panels.data(),
                               .weight_type = matrix.type,
                               .bias = matrix.bias.empty() ? nullptr : matrix.bias.data(),
                               .c = c.data,
                               .c_stride = c.stride,
                               .n = matrix.n,
                               .k = matrix.k};
  const int64_t row_pieces = CeilDiv(rows.size(), kGemmRows);
  const int64_t piece_rows =
      rows.size() == 1 ? 1 : RoundUp(CeilDiv(rows.size(), row_pieces), kGemmRowMultiple);
  const int64_t panels = kernels::PanelsOf(matrix.n);
  // Many rows: 8 panels reuse a block of activations well enough. One row: a few long pieces a
  // thread.
  const int64_t piece_panels = row_pieces > 1 || rows.size() > kGemmRowMultiple
                                   ? 8
                                   : RoundUp(CeilDiv(panels, int64_t{pool_.num_threads()} * 4), 4);
  const int64_t panel_pieces = CeilDiv(panels, piece_panels);
  pool_.Run(row_pieces * panel_pieces, [&](int64_t piece, int thread) {
    const int64_t row = rows.begin + piece / panel_pieces * piece_rows;
    const int64_t panel = piece % panel_pieces * piece_panels;
    const kernels::GemmBlock block{row, std::min(row + piece_rows, rows.end), panel,
                                   std::min(panel + piece_panels, panels)};
    if (block.row_begin < block.row_end) kernels_.gemm(args, block, scratch(thread));
  });
}

void CpuBackend::RotateAndStore(const PlacedPass& placed, int64_t layer) {
  const CpuLayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  const int64_t first = placed.rows.begin;  // the kernels count rows from the pass's first token
  kernels::RopeArgs q{.x = qkv_.row(first),
                      .x_stride = qkv_.stride,
                      .heads = config_.num_heads,
                      .head_dim = config_.head_dim,
                      .cos = cosine_ + first * rope_.half(),
                      .sin = sine_ + first * rope_.half(),
                      .norm_weight = weights.q_norm.empty() ? nullptr : weights.q_norm.data(),
                      .norm_epsilon = epsilon};
  kernels::RopeArgs k = q;
  k.x = q.x + config_.query_size();
  k.heads = config_.num_kv_heads;
  k.norm_weight = weights.k_norm.empty() ? nullptr : weights.k_norm.data();
  kernels::KvStoreArgs store_k{
      .x = k.x,
      .x_stride = qkv_.stride,
      .kv_heads = config_.num_kv_heads,
      .head_dim = config_.head_dim,
      .pages = placed.pass->write_pages,
      .block_tokens = layout_.block_tokens,
      .offset = layout_.k_offset(layer),
      .kv_type = layout_.dtype == KvDtype::kBf16 ? kernels::KvType::kBf16 : kernels::KvType::kF32,
      .first_position = placed.pass->first_position};
  kernels::KvStoreArgs store_v = store_k;
  store_v.x = k.x + config_.kv_size();
  store_v.offset = layout_.v_offset(layer);
  ForRows({0, placed.rows.size()}, [&](int64_t begin, int64_t end) {
    kernels_.rope(q, begin, end);
    kernels_.rope(k, begin, end);
    kernels_.store_kv(store_k, begin, end);
    kernels_.store_kv(store_v, begin, end);
  });
}

// The pieces of all passes, the longest first, so that no thread starts one when the others are
// done.
void CpuBackend::CutAttention(OutputRows wanted) {
  const int64_t piece_tokens =
      kernels::kAttentionRowsMax / (config_.num_heads / config_.num_kv_heads);
  attention_pieces_.clear();
  for (const PlacedPass& placed : placed_) {
    const int64_t end = placed.rows.size();
    if (wanted == OutputRows::kOfLogits) {
      if (placed.has_logits()) attention_pieces_.push_back({&placed, end - 1, end});
      continue;
    }
    for (int64_t token = 0; token < end; token += piece_tokens) {
      attention_pieces_.push_back({&placed, token, std::min(token + piece_tokens, end)});
    }
  }
  const auto keys = [](const AttentionPiece& piece) {
    return piece.placed->pass->first_position + piece.token_end;
  };
  const auto cost = [&keys](const AttentionPiece& piece) {
    return keys(piece) * (piece.token_end - piece.token_begin);
  };
  std::sort(attention_pieces_.begin(), attention_pieces_.end(),
            [&cost](const auto& a, const auto& b) { return cost(a) > cost(b); });
}

void CpuBackend::Attend(int64_t layer) {
  kernels::AttentionArgs shared{
      .q_stride = qkv_.stride,
      .out_stride = attended_.stride,
      .block_tokens = layout_.block_tokens,
      .k_offset = layout_.k_offset(layer),
      .v_offset = layout_.v_offset(layer),
      .kv_type = layout_.dtype == KvDtype::kBf16 ? kernels::KvType::kBf16 : kernels::KvType::kF32,
      .group = config_.num_heads / config_.num_kv_heads,
      .head_dim = config_.head_dim,
      .value_dim = config_.head_dim,
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)))};
  const auto num_pieces = static_cast<int64_t>(attention_pieces_.size()) * config_.num_kv_heads;
  pool_.Run(num_pieces, [&](int64_t index, int thread) {
    const AttentionPiece& piece =
        attention_pieces_[static_cast<size_t>(index / config_.num_kv_heads)];
    kernels::AttentionArgs args = shared;
    args.q = qkv_.row(piece.placed->rows.begin);
    args.out = attended_.row(piece.placed->rows.begin);
    args.pages = piece.placed->pass->read_pages;
    args.first_position = piece.placed->pass->first_position;
    kernels_.attention(args, {index % config_.num_kv_heads, piece.token_begin, piece.token_end},
                       scratch(thread));
  });
}

// Moves the rows whose logits are wanted to the front of what the last layer still reads, in the
// order of the passes.
RowRange CpuBackend::KeepLogitRows() {
  int64_t kept = 0;
  for (const PlacedPass& placed : placed_) {
    if (!placed.has_logits()) continue;
    const int64_t row = placed.rows.end - 1;
    if (row != kept) {
      std::copy_n(x_.row(row), config_.hidden_size, x_.row(kept));
      std::copy_n(attended_.row(row), config_.query_size(), attended_.row(kept));
    }
    ++kept;
  }
  return {0, kept};
}

void CpuBackend::FeedForward(RowRange rows, const CpuLayerWeights& layer) {
  Gemm(rows, normed_, layer.gate_up, gate_up_);
  const kernels::SwigluArgs args{.gate_up = gate_up_.data,
                                 .gate_up_stride = gate_up_.stride,
                                 .out = activated_.data,
                                 .out_stride = activated_.stride,
                                 .n = config_.intermediate_size};
  ForRows(rows, [&](int64_t begin, int64_t end) { kernels_.swiglu(args, begin, end); });
  Gemm(rows, activated_, layer.down, projected_);
}

// Returns false when the gate ended the pass.
bool CpuBackend::RunLayer(int64_t layer, OutputRows wanted) {
  const CpuLayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  RowRange rows{0, rows_};
  Norm(rows, layer == 0 ? nullptr : &projected_, weights.input_norm);
  Gemm(rows, normed_, weights.qkv, qkv_);
  for (const PlacedPass& placed : placed_) RotateAndStore(placed, layer);
  const auto& gate = placed_.front().pass->layer_gate;
  if (gate && !gate(layer)) return false;
  if (wanted == OutputRows::kOfLogits) CutAttention(wanted);
  if (attention_pieces_.empty()) return true;
  Attend(layer);
  if (wanted == OutputRows::kOfLogits) rows = KeepLogitRows();
  Gemm(rows, attended_, weights.o, projected_);
  Norm(rows, &projected_, weights.post_attention_norm);
  FeedForward(rows, weights);
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
    Norm(rows, &projected_, weights_.final_norm);
    const Activation input{normed_.row(done), normed_.stride};
    const bool is_direct = pending == 1;
    const Activation logits{is_direct ? out[0] : logits_.data, logits_.stride};
    Gemm({0, pending}, input, weights_.lm_head, logits);
    for (int64_t row = 0; row < pending && !is_direct; ++row) {
      std::copy_n(logits_.row(row), config_.vocab_size, out[static_cast<size_t>(row)]);
    }
    done += pending;
    pending = 0;
  };
  for (const PlacedPass& placed : placed_) {
    if (!placed.has_logits()) continue;
    out[static_cast<size_t>(pending++)] = placed.pass->logits.data();
    if (pending == kLogitRows) flush();
  }
  if (pending > 0) flush();
}

absl::Status CpuBackend::ForwardBatch(std::span<const ForwardPass> passes) {
  RETURN_IF_ERROR(CheckBatch(passes, config_, rows_max_));
  PlacePasses(passes);
  for (const PlacedPass& placed : placed_) {
    Embed(placed);
    FillRope(placed);
  }
  CutAttention(OutputRows::kAll);
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
  if (config.experts.has_value() || config.latent.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model_type is ", std::string(ModelFamilyName(config.family)),
        "; the CPU back-end computes neither mixtures of experts nor latent attention"));
  }
  if (config.head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", config.head_dim, "; the CPU back-end needs a multiple of 16"));
  }
  const int64_t group = config.num_heads / config.num_kv_heads;
  if (group > kernels::kAttentionRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat(group, " query heads share a kv head; at most ",
                                                   kernels::kAttentionRowsMax, " may"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const ModelConfig& config,
                                                          const ModelWeights& weights,
                                                          const CpuBackendOptions& options) {
  RETURN_IF_ERROR(CheckOptions(config, options));
  const KvLayout layout{.num_layers = config.num_layers,
                        .num_kv_heads = config.num_kv_heads,
                        .head_dim = config.head_dim,
                        .dtype = options.kv_dtype,
                        .block_tokens = options.block_tokens};
  RETURN_IF_ERROR(layout.Validate());
  auto backend = std::make_unique<CpuBackend>(config, weights, options, layout);
  RETURN_IF_ERROR(backend->Initialize());
  return backend;
}

}  // namespace kvstore::engine
