#include "engine_adapter/llama_cpu/cpu_attention.h"

namespace kvstore::engine {

void CpuAttention::Plan(WorkSpace& space, int64_t rows_max) {
  space.AddFloats(cosine_, rows_max * rope_.half());
  space.AddFloats(sine_, rows_max * rope_.half());
}

void CpuAttention::Begin(const CpuBatch& batch) {
  for (const PlacedPass& placed : batch.passes()) {
    executor_.ForRows(placed.rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        rope_.Fill(placed.pass->first_position + row - placed.rows.begin,
                   cosine_ + row * rope_.half(), sine_ + row * rope_.half());
      }
    });
  }
}

}  // namespace kvstore::engine
