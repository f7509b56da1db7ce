// Generate runs one request from prompt to last token: load what is cached, compute the rest in
// passes, sample, decode.
//
// TTFT is measured from `arrival` to the first token chosen; TPOT over the tokens after it.
#pragma once

#include <absl/status/statusor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/sequence.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "engine_adapter/paging/timeline.h"

namespace kvstore::engine {

// What a caller may watch. Empty functions are not called; all are called on the thread of
// Generate().
struct GenerateObserver {
  // Prompt tokens that are loaded or computed so far. After every pass.
  std::function<void(int64_t done, int64_t total)> on_prefill;
  // Each chosen token.
  std::function<void(uint32_t token_id)> on_token;
  // The logits each token was chosen from: those of the last prompt token first.
  std::function<void(std::span<const float> logits)> on_logits;
  Timeline* timeline = nullptr;  // may be null
};

struct GenerateResult {
  std::vector<uint32_t> output_ids;  // an end token that stopped it included
  int64_t prompt_tokens = 0;
  int64_t reused_tokens = 0;  // prompt tokens that were not computed: at most prompt_tokens - 1
  PrefixLoad load;
  std::chrono::duration<double> ttft{};
  std::chrono::duration<double> tpot{};  // 0 for a single token
};

// Finishes `cache` in every case.
// Errors: InvalidArgument, an empty prompt, a token outside the vocabulary, max_tokens < 1, or more
// tokens than the model has positions (numbers named); ResourceExhausted, no memory for pages. A
// failed load is not an error.
absl::StatusOr<GenerateResult> Generate(Backend& backend, PrefixCache& cache,
                                        const GenerateRequest& request,
                                        const GenerateObserver& observer);

}  // namespace kvstore::engine
