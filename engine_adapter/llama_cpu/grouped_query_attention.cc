// Grouped-query attention: `num_heads / num_kv_heads` query heads read one head of keys and values.
#include <algorithm>
#include <cmath>
#include <utility>

#include "engine_adapter/llama_cpu/cpu_attention.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Q = query_size, KV = kv_size.
struct Weights {
  PackedMatrix qkv;           // [Q + 2 KV, H]
  PackedMatrix o;             // [H, Q]
  std::vector<float> q_norm;  // [head_dim] or empty
  std::vector<float> k_norm;  // [head_dim] or empty
};

class GroupedQueryAttention final : public CpuAttention {
 public:
  using CpuAttention::CpuAttention;

  absl::Status PackLayer(const LayerWeights& from) override;
  void Plan(WorkSpace& space, int64_t rows_max) override;
  void Project(const CpuBatch& batch, int64_t layer, const Activation& in) override;
  void Attend(const CpuBatch& batch, int64_t layer) override;
  void MoveRow(int64_t from, int64_t to) override {
    std::copy_n(attended_.row(from), config_.query_size(), attended_.row(to));
  }
  void Output(RowRange rows, int64_t layer, const Activation& out) override {
    executor_.Multiply(rows, attended_, layers_[static_cast<size_t>(layer)].o, out);
  }

 private:
  void RotateAndStore(const PlacedPass& placed, int64_t layer);

  std::vector<Weights> layers_;
  Activation qkv_;       // [rows, Q + 2 KV]
  Activation attended_;  // [rows, Q]
};

absl::Status GroupedQueryAttention::PackLayer(const LayerWeights& from) {
  Weights layer;
  ThreadPool& pool = executor_.pool();
  ASSIGN_OR_RETURN(layer.qkv, PackFused({&from.q_proj, &from.k_proj, &from.v_proj}, pool));
  ASSIGN_OR_RETURN(layer.o, PackFused({&from.o_proj}, pool));
  for (const auto* bias : {&from.q_bias, &from.k_bias, &from.v_bias}) {
    const std::vector<float> values = WidenOptional(*bias);
    layer.qkv.bias.insert(layer.qkv.bias.end(), values.begin(), values.end());
  }
  layer.q_norm = WidenOptional(from.q_norm);
  layer.k_norm = WidenOptional(from.k_norm);
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

void GroupedQueryAttention::Plan(WorkSpace& space, int64_t rows_max) {
  CpuAttention::Plan(space, rows_max);
  space.AddRows(qkv_, rows_max, config_.query_size() + 2 * config_.kv_size());
  space.AddRows(attended_, rows_max, config_.query_size());
}

void GroupedQueryAttention::Project(const CpuBatch& batch, int64_t layer, const Activation& in) {
  executor_.Multiply({0, batch.num_rows()}, in, layers_[static_cast<size_t>(layer)].qkv, qkv_);
  for (const PlacedPass& placed : batch.passes()) RotateAndStore(placed, layer);
}

void GroupedQueryAttention::RotateAndStore(const PlacedPass& placed, int64_t layer) {
  const Weights& weights = layers_[static_cast<size_t>(layer)];
  const int64_t first = placed.rows.begin;  // the kernels count rows from the pass's first token
  kernels::RopeArgs q{.x = qkv_.row(first),
                      .x_stride = qkv_.stride,
                      .heads = config_.num_heads,
                      .head_dim = config_.head_dim,
                      .cos = cosine(first),
                      .sin = sine(first),
                      .norm_weight = weights.q_norm.empty() ? nullptr : weights.q_norm.data(),
                      .norm_epsilon = static_cast<float>(config_.rms_norm_eps)};
  kernels::RopeArgs k = q;
  k.x = q.x + config_.query_size();
  k.heads = config_.num_kv_heads;
  k.norm_weight = weights.k_norm.empty() ? nullptr : weights.k_norm.data();
  kernels::KvStoreArgs store_k{.x = k.x,
                               .x_stride = qkv_.stride,
                               .kv_heads = config_.num_kv_heads,
                               .head_dim = config_.head_dim,
                               .pages = placed.pass->write_pages,
                               .block_tokens = layout_.block_tokens,
                               .offset = layout_.k_offset(layer),
                               .kv_type = kv_type(),
                               .first_position = placed.pass->first_position};
  kernels::KvStoreArgs store_v = store_k;
  store_v.x = k.x + config_.kv_size();
  store_v.offset = layout_.v_offset(layer);
  const kernels::CpuKernels& run = executor_.kernels();
  executor_.ForRows({0, placed.rows.size()}, [&](int64_t begin, int64_t end) {
    run.rope(q, begin, end);
    run.rope(k, begin, end);
    run.store_kv(store_k, begin, end);
    run.store_kv(store_v, begin, end);
  });
}

void GroupedQueryAttention::Attend(const CpuBatch& batch, int64_t layer) {
  const kernels::AttentionArgs shared{
      .q_stride = qkv_.stride,
      .out_stride = attended_.stride,
      .block_tokens = layout_.block_tokens,
      .k_offset = layout_.k_offset(layer),
      .v_offset = layout_.v_offset(layer),
      .kv_type = kv_type(),
      .group = config_.num_heads / config_.num_kv_heads,
      .head_dim = config_.head_dim,
      .value_dim = config_.head_dim,
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)))};
  const auto pieces = batch.attention_pieces();
  const auto num_pieces = static_cast<int64_t>(pieces.size()) * config_.num_kv_heads;
  executor_.pool().Run(num_pieces, [&](int64_t index, int thread) {
    const AttentionPiece& piece = pieces[static_cast<size_t>(index / config_.num_kv_heads)];
    kernels::AttentionArgs args = shared;
    args.q = qkv_.row(piece.placed->rows.begin);
    args.out = attended_.row(piece.placed->rows.begin);
    args.pages = piece.placed->pass->read_pages;
    args.first_position = piece.placed->pass->first_position;
    executor_.kernels().attention(
        args, {index % config_.num_kv_heads, piece.token_begin, piece.token_end},
        executor_.scratch(thread));
  });
}

}  // namespace

std::unique_ptr<CpuAttention> MakeGroupedQueryAttention(const ModelConfig& config,
                                                        const KvLayout& layout,
                                                        CpuExecutor& executor) {
  return std::make_unique<GroupedQueryAttention>(config, layout, executor);
}

}  // namespace kvstore::engine
