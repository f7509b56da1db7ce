// RopeTable holds the rotary frequencies of a model and fills in cosines and sines for given
// positions.
//
// Frequencies and angles are rounded to float32 where Hugging Face transformers rounds them, so
// that long positions turn by the same angles there and here. Threads: immutable.
#pragma once

#include <cstdint>
#include <vector>

#include "engine_adapter/llama/model_config.h"

namespace kvstore::engine {

class RopeTable {
 public:
  explicit RopeTable(const ModelConfig& config);

  int64_t half() const { return static_cast<int64_t>(inverse_frequencies_.size()); }
  const std::vector<float>& inverse_frequencies() const { return inverse_frequencies_; }

  // cosine and sine of position * frequency, times the scaling's attention_factor; [half()] each.
  void Fill(int64_t position, float* cosine, float* sine) const;

 private:
  std::vector<float> inverse_frequencies_;  // [rope_dim / 2], scaling applied
  float attention_factor_ = 1.0f;
};

}  // namespace kvstore::engine
