// CpuBatch places the passes of a batch into rows of activations, and cuts their attention into
// pieces.
//
// Threads: externally synchronised; does not allocate after the constructor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama_cpu/work_space.h"

namespace kvstore::engine {

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

class CpuBatch {
 public:
  // Batches of at most `rows_max` rows; pieces of attention of at most `piece_tokens` tokens.
  CpuBatch(int64_t rows_max, int64_t piece_tokens);

  // One pass after another, each its rows. `passes` outlives the batch.
  void Place(std::span<const ForwardPass> passes);
  void CutAttention(OutputRows wanted);

  std::span<const PlacedPass> passes() const { return placed_; }
  int64_t num_rows() const { return num_rows_; }
  // Longest first, so that no thread starts one when the others are done.
  std::span<const AttentionPiece> attention_pieces() const { return pieces_; }

 private:
  const int64_t piece_tokens_;
  std::vector<PlacedPass> placed_;
  std::vector<AttentionPiece> pieces_;
  int64_t num_rows_ = 0;
};

}  // namespace kvstore::engine
