#include "engine_adapter/llama/backend.h"

#include <absl/strings/str_cat.h>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::Status CheckPass(const ForwardPass& pass, const ModelConfig& config, int64_t rows_max) {
  const auto rows = static_cast<int64_t>(pass.token_ids.size());
  if (rows < 1 || rows > rows_max || pass.first_position < 0 ||
      pass.first_position + rows > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a pass of ", rows, " tokens at position ", pass.first_position, "; valid are 1 to ",
        rows_max, " tokens below position ", config.max_positions));
  }
  if (!pass.logits.empty() && static_cast<int64_t>(pass.logits.size()) != config.vocab_size) {
    return absl::InvalidArgumentError("room for logits is not the size of the vocabulary");
  }
  for (const uint32_t id : pass.token_ids) {
    if (static_cast<int64_t>(id) >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is outside the vocabulary of ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(std::span<const ForwardPass> passes, const ModelConfig& config,
                        int64_t rows_max) {
  if (passes.empty()) return absl::InvalidArgumentError("a batch without passes");
  int64_t rows = 0;
  for (const ForwardPass& pass : passes) {
    RETURN_IF_ERROR(CheckPass(pass, config, rows_max - rows));
    rows += static_cast<int64_t>(pass.token_ids.size());
    if (passes.size() > 1 && pass.layer_gate) {
      return absl::InvalidArgumentError("a pass that waits for its layers goes alone");
    }
  }
  return absl::OkStatus();
}

absl::Status Backend::ForwardBatch(std::span<const ForwardPass> passes) {
  RETURN_IF_ERROR(CheckBatch(passes, config(), pass_tokens_max()));
  for (const ForwardPass& pass : passes) RETURN_IF_ERROR(Forward(pass));
  return absl::OkStatus();
}

}  // namespace kvstore::engine
