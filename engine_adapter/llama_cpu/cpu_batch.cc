#include "engine_adapter/llama_cpu/cpu_batch.h"

#include <algorithm>

namespace kvstore::engine {

CpuBatch::CpuBatch(int64_t rows_max, int64_t piece_tokens) : piece_tokens_(piece_tokens) {
  placed_.reserve(static_cast<size_t>(rows_max));
  pieces_.reserve(static_cast<size_t>(rows_max));
}

void CpuBatch::Place(std::span<const ForwardPass> passes) {
  placed_.clear();
  num_rows_ = 0;
  for (const ForwardPass& pass : passes) {
    const auto tokens = static_cast<int64_t>(pass.token_ids.size());
    placed_.push_back({.pass = &pass, .rows = {num_rows_, num_rows_ + tokens}});
    num_rows_ += tokens;
  }
}

void CpuBatch::CutAttention(OutputRows wanted) {
  pieces_.clear();
  for (const PlacedPass& placed : placed_) {
    const int64_t end = placed.rows.size();
    if (wanted == OutputRows::kOfLogits) {
      if (placed.has_logits()) pieces_.push_back({&placed, end - 1, end});
      continue;
    }
    for (int64_t token = 0; token < end; token += piece_tokens_) {
      pieces_.push_back({&placed, token, std::min(token + piece_tokens_, end)});
    }
  }
  const auto cost = [](const AttentionPiece& piece) {
    const int64_t keys = piece.placed->pass->first_position + piece.token_end;
    return keys * (piece.token_end - piece.token_begin);
  };
  std::sort(pieces_.begin(), pieces_.end(),
            [&cost](const auto& a, const auto& b) { return cost(a) > cost(b); });
}

}  // namespace kvstore::engine
