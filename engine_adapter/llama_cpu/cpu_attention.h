// CpuAttention is the attention of all layers of a model: its weights, its work space, what it
// writes into pages and how it reads them back. One class a kind: grouped-query attention (with
// MHA and MQA as its ends) and latent attention.
//
// Order of calls: PackLayer() for each layer and Plan() at the start; then Begin() once a batch, and
// for each layer Project(), Attend() and Output().
//
// Threads: externally synchronised; the work runs on the executor's threads.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama/rope_table.h"
#include "engine_adapter/llama_cpu/cpu_batch.h"
#include "engine_adapter/llama_cpu/cpu_executor.h"
#include "engine_adapter/paging/kv_layout.h"
#include "kernels/cpu_kernels.h"

namespace kvstore::engine {

class CpuAttention {
 public:
  // `config` and `executor` outlive this.
  CpuAttention(const ModelConfig& config, const KvLayout& layout, CpuExecutor& executor)
      : config_(config), layout_(layout), executor_(executor), rope_(config) {}
  virtual ~CpuAttention() = default;

  // Layers in ascending order. Errors: ResourceExhausted.
  virtual absl::Status PackLayer(const LayerWeights& weights) = 0;
  // For batches of at most `rows_max` rows.
  virtual void Plan(WorkSpace& space, int64_t rows_max);

  // Rotations of the batch's positions.
  void Begin(const CpuBatch& batch);
  // Queries of all rows of `in` ([rows, H], after its norm); keys and values into the pages.
  virtual void Project(const CpuBatch& batch, int64_t layer, const Activation& in) = 0;
  // The batch's pieces of attention.
  virtual void Attend(const CpuBatch& batch, int64_t layer) = 0;
  // Puts what Attend() gave for row `from` in the place of row `to`.
  virtual void MoveRow(int64_t from, int64_t to) = 0;
  // Output projection: out is [rows, H].
  virtual void Output(RowRange rows, int64_t layer, const Activation& out) = 0;

 protected:
  kernels::KvType kv_type() const {
    return layout_.dtype == KvDtype::kBf16 ? kernels::KvType::kBf16 : kernels::KvType::kF32;
  }
  const float* cosine(int64_t row) const { return cosine_ + row * rope_.half(); }
  const float* sine(int64_t row) const { return sine_ + row * rope_.half(); }

  const ModelConfig& config_;
  const KvLayout layout_;
  CpuExecutor& executor_;

 private:
  const RopeTable rope_;
  float* cosine_ = nullptr;  // [rows, rope_dim / 2]
  float* sine_ = nullptr;
};

std::unique_ptr<CpuAttention> MakeGroupedQueryAttention(const ModelConfig& config,
                                                        const KvLayout& layout,
                                                        CpuExecutor& executor);
// Requires: config.latent.
std::unique_ptr<CpuAttention> MakeLatentAttention(const ModelConfig& config, const KvLayout& layout,
                                                  CpuExecutor& executor);

}  // namespace kvstore::engine
