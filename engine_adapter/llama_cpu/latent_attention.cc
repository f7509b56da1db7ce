// Latent attention (MLA), in its absorbed form.
//
// A head's key and value are products of the token's latent vector c: k = [U c, r] with the shared
// rotated r, v = V c. Instead of making them, a head's query takes U into itself: q . k =
// (U^T q_nope) . c + q_rope . r, and V waits until the weighted latent vectors are summed. So all
// heads read one row [c, r] a token, as it lies in the page: attention with one head of keys, whose
// front is the values.
//
// The other form makes k and v of every token that a pass sees. With the sizes of DeepSeek-V2-Lite a
// (query, key, head) then costs 2 (192 + 128) = 640 operations instead of 2 (576 + 512) = 2,176, but
// each key costs 262,144 a head in every pass. One layer, 16 heads, one thread of an AMD EPYC (Zen
// 3), 4,096 tokens in bf16 pages, milliseconds:
//
//   rows of the pass     absorbed     keys and values made
//                  1          3.9                      380
//                 64          188                      441
//                512        1,717                      902
//
// Both may not be used side by side: they round differently, so what a token gives would depend on
// how its prompt was cut. Decode leaves no choice. The price is a longer prefill of long prompts.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "engine_adapter/llama_cpu/cpu_attention.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Of the RMSNorm of the latent vector. Not in config.json: the reference has it in its code.
constexpr float kLatentNormEpsilon = 1e-6f;

// R = kv_rank. Of projections, the rows of all heads' unrotated parts come first, then those of the
// rotated ones, in "rotate half" order.
struct Weights {
  PackedMatrix down;                   // [heads * (nope_dim + rope_dim) + R + rope_dim, H]
  std::vector<PackedMatrix> absorb_k;  // of each head, [R, nope_dim]
  std::vector<PackedMatrix> up_v;      // of each head, [value_dim, R]
  PackedMatrix o;                      // [H, heads * value_dim]
  std::vector<float> norm;             // [R]
};

class LatentAttentionLayers final : public CpuAttention {
 public:
  LatentAttentionLayers(const ModelConfig& config, const KvLayout& layout, CpuExecutor& executor)
      : CpuAttention(config, layout, executor), shape_(*config.latent) {}

  absl::Status PackLayer(const LayerWeights& from) override;
  void Plan(WorkSpace& space, int64_t rows_max) override;
  void Project(const CpuBatch& batch, int64_t layer, const Activation& in) override;
  void Attend(const CpuBatch& batch, int64_t layer) override;
  void MoveRow(int64_t from, int64_t to) override {
    std::copy_n(attended_.row(from), config_.num_heads * shape_.kv_rank, attended_.row(to));
  }
  void Output(RowRange rows, int64_t layer, const Activation& out) override;

 private:
  int64_t nope_size() const { return config_.num_heads * shape_.nope_dim; }
  int64_t latent_column() const { return config_.query_size(); }

  absl::StatusOr<PackedMatrix> PackDown(const LayerWeights& from);
  void NormRotateAndStore(const PlacedPass& placed, int64_t layer);
  void MultiplyHeads(RowRange rows, const Activation& a, int64_t a_columns,
                     const std::vector<PackedMatrix>& matrices, const Activation& c,
                     int64_t c_columns);
  void TakeRotatedQueries(RowRange rows);
  int64_t HeadParts(int64_t num_pieces) const;
  double ScoreScale() const;

  const LatentAttention& shape_;
  std::vector<Weights> layers_;
  std::vector<Product> products_;
  Activation projected_;  // [rows, heads * nope_dim | heads * rope_dim | R | rope_dim]
  Activation queries_;    // [rows, heads, R + rope_dim]
  Activation attended_;   // [rows, heads, R], weighted latent vectors
  Activation values_;     // [rows, heads * value_dim]
};

// Neighbours of a rotated part become its two halves.
void AppendHalves(std::vector<int64_t>& rows, int64_t first, int64_t rope_dim) {
  for (int64_t i = 0; i < rope_dim; i += 2) rows.push_back(first + i);
  for (int64_t i = 1; i < rope_dim; i += 2) rows.push_back(first + i);
}

absl::StatusOr<PackedMatrix> LatentAttentionLayers::PackDown(const LayerWeights& from) {
  std::vector<int64_t> query_rows, latent_rows(static_cast<size_t>(shape_.kv_rank));
  for (int64_t head = 0; head < config_.num_heads; ++head) {
    for (int64_t i = 0; i < shape_.nope_dim; ++i) query_rows.push_back(head * config_.head_dim + i);
  }
  for (int64_t head = 0; head < config_.num_heads; ++head) {
    AppendHalves(query_rows, head * config_.head_dim + shape_.nope_dim, shape_.rope_dim);
  }
  std::iota(latent_rows.begin(), latent_rows.end(), 0);
  AppendHalves(latent_rows, shape_.kv_rank, shape_.rope_dim);
  const bool is_bf16 =
      from.q_proj.dtype == DType::kBF16 && from.latent->kv_down.dtype == DType::kBF16;
  ASSIGN_OR_RETURN(MatrixPacker packer,
                   MatrixPacker::Create(config_.query_size() + shape_.cached_size(),
                                        config_.hidden_size, is_bf16, executor_.pool()));
  packer.AppendRows(from.q_proj, query_rows);
  packer.AppendRows(from.latent->kv_down, latent_rows);
  return std::move(packer).Finish();
}

absl::Status LatentAttentionLayers::PackLayer(const LayerWeights& from) {
  Weights layer;
  ThreadPool& pool = executor_.pool();
  ASSIGN_OR_RETURN(layer.down, PackDown(from));
  const TensorView& up = from.latent->kv_up;
  const bool is_bf16 = up.dtype == DType::kBF16;
  for (int64_t head = 0; head < config_.num_heads; ++head) {
    const int64_t first = head * (shape_.nope_dim + shape_.value_dim);
    ASSIGN_OR_RETURN(MatrixPacker keys,
                     MatrixPacker::Create(shape_.kv_rank, shape_.nope_dim, is_bf16, pool));
    keys.AppendTransposed(up, first);
    layer.absorb_k.push_back(std::move(keys).Finish());
    ASSIGN_OR_RETURN(MatrixPacker values,
                     MatrixPacker::Create(shape_.value_dim, shape_.kv_rank, is_bf16, pool));
    std::vector<int64_t> rows(static_cast<size_t>(shape_.value_dim));
    std::iota(rows.begin(), rows.end(), first + shape_.nope_dim);
    values.AppendRows(up, rows);
    layer.up_v.push_back(std::move(values).Finish());
  }
  ASSIGN_OR_RETURN(layer.o, PackFused({&from.o_proj}, pool));
  layer.norm = Widen(from.latent->kv_norm);
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

void LatentAttentionLayers::Plan(WorkSpace& space, int64_t rows_max) {
  CpuAttention::Plan(space, rows_max);
  products_.reserve(static_cast<size_t>(config_.num_heads));
  space.AddRows(projected_, rows_max, config_.query_size() + shape_.cached_size());
  space.AddRows(queries_, rows_max, config_.num_heads * shape_.cached_size());
  space.AddRows(attended_, rows_max, config_.num_heads * shape_.kv_rank);
  space.AddRows(values_, rows_max, config_.attended_size());
}

void LatentAttentionLayers::Project(const CpuBatch& batch, int64_t layer, const Activation& in) {
  const Weights& weights = layers_[static_cast<size_t>(layer)];
  const RowRange rows{0, batch.num_rows()};
  executor_.Multiply(rows, in, weights.down, projected_);
  for (const PlacedPass& placed : batch.passes()) NormRotateAndStore(placed, layer);
  MultiplyHeads(rows, projected_, shape_.nope_dim, weights.absorb_k, queries_,
                shape_.cached_size());
  TakeRotatedQueries(rows);
}

void LatentAttentionLayers::NormRotateAndStore(const PlacedPass& placed, int64_t layer) {
  const int64_t first = placed.rows.begin;  // the kernels count rows from the pass's first token
  float* const latent = projected_.row(first) + latent_column();
  const kernels::NormArgs norm{.x = latent,
                               .weight = layers_[static_cast<size_t>(layer)].norm.data(),
                               .out = latent,
                               .x_stride = projected_.stride,
                               .out_stride = projected_.stride,
                               .n = shape_.kv_rank,
                               .epsilon = kLatentNormEpsilon};
  const kernels::RopeArgs queries{.x = projected_.row(first) + nope_size(),
                                  .x_stride = projected_.stride,
                                  .heads = config_.num_heads,
                                  .head_dim = shape_.rope_dim,
                                  .cos = cosine(first),
                                  .sin = sine(first)};
  kernels::RopeArgs key = queries;
  key.x = latent + shape_.kv_rank;
  key.heads = 1;
  const kernels::KvStoreArgs store{.x = latent,
                                   .x_stride = projected_.stride,
                                   .kv_heads = 1,
                                   .head_dim = shape_.cached_size(),
                                   .pages = placed.pass->write_pages,
                                   .block_tokens = layout_.block_tokens,
                                   .offset = layout_.k_offset(layer),
                                   .kv_type = kv_type(),
                                   .first_position = placed.pass->first_position};
  const kernels::CpuKernels& run = executor_.kernels();
  executor_.ForRows({0, placed.rows.size()}, [&](int64_t begin, int64_t end) {
    run.norm(norm, begin, end);
    run.rope(queries, begin, end);
    run.rope(key, begin, end);
    run.store_kv(store, begin, end);
  });
}

// Of each head, its columns of `a` times its matrix into its columns of `c`.
void LatentAttentionLayers::MultiplyHeads(RowRange rows, const Activation& a, int64_t a_columns,
                                          const std::vector<PackedMatrix>& matrices,
                                          const Activation& c, int64_t c_columns) {
  products_.clear();
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto head = static_cast<int64_t>(i);
    products_.push_back({.a = a.FromColumn(head * a_columns),
                         .matrix = &matrices[i],
                         .c = c.FromColumn(head * c_columns),
                         .rows = rows});
  }
  executor_.Multiply(products_);
}

void LatentAttentionLayers::TakeRotatedQueries(RowRange rows) {
  executor_.ForRows(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < config_.num_heads; ++head) {
        std::copy_n(projected_.row(row) + nope_size() + head * shape_.rope_dim, shape_.rope_dim,
                    queries_.row(row) + head * shape_.cached_size() + shape_.kv_rank);
      }
    }
  });
}

double LatentAttentionLayers::ScoreScale() const {
  return config_.rope_scaling.score_factor / std::sqrt(static_cast<double>(config_.head_dim));
}

// All heads read the same keys, so one piece can have them all: the keys are widened once. With
// fewer pieces than threads (decode) the heads are shared out; each is computed by itself, so this
// changes no bit.
int64_t LatentAttentionLayers::HeadParts(int64_t num_pieces) const {
  const int64_t wanted = CeilDiv(executor_.num_threads(), num_pieces);
  int64_t parts = std::min(wanted, config_.num_heads);
  while (config_.num_heads % parts != 0) ++parts;
  return parts;
}

void LatentAttentionLayers::Attend(const CpuBatch& batch, int64_t layer) {
  const auto pieces = batch.attention_pieces();
  const int64_t parts = HeadParts(static_cast<int64_t>(pieces.size()));
  const int64_t heads = config_.num_heads / parts;
  const kernels::AttentionArgs shared{.q_stride = queries_.stride,
                                      .out_stride = attended_.stride,
                                      .block_tokens = layout_.block_tokens,
                                      .k_offset = layout_.k_offset(layer),
                                      .v_offset = layout_.v_offset(layer),
                                      .kv_type = kv_type(),
                                      .group = heads,
                                      .head_dim = shape_.cached_size(),
                                      .value_dim = shape_.kv_rank,
                                      .scale = static_cast<float>(ScoreScale())};
  executor_.pool().Run(static_cast<int64_t>(pieces.size()) * parts, [&](int64_t index, int thread) {
    const AttentionPiece& piece = pieces[static_cast<size_t>(index / parts)];
    const int64_t head = index % parts * heads;
    kernels::AttentionArgs args = shared;
    args.q = queries_.row(piece.placed->rows.begin) + head * shape_.cached_size();
    args.out = attended_.row(piece.placed->rows.begin) + head * shape_.kv_rank;
    args.pages = piece.placed->pass->read_pages;
    args.first_position = piece.placed->pass->first_position;
    executor_.kernels().attention(args, {0, piece.token_begin, piece.token_end},
                                  executor_.scratch(thread));
  });
}

void LatentAttentionLayers::Output(RowRange rows, int64_t layer, const Activation& out) {
  const Weights& weights = layers_[static_cast<size_t>(layer)];
  MultiplyHeads(rows, attended_, shape_.kv_rank, weights.up_v, values_, shape_.value_dim);
  executor_.Multiply(rows, values_, weights.o, out);
}

}  // namespace

std::unique_ptr<CpuAttention> MakeLatentAttention(const ModelConfig& config, const KvLayout& layout,
                                                  CpuExecutor& executor) {
  return std::make_unique<LatentAttentionLayers>(config, layout, executor);
}

}  // namespace kvstore::engine
