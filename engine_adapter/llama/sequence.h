// Sequence is one request step by step: what is to be computed next, what became of it, the next
// token. Generate() runs one from start to end; a scheduler runs many of them in shared batches.
//
//   LoadPrefix, then [WaitLoaded,] then until IsDone():
//     NextPass -> the back-end -> EndPass, until HasLogits; then ChooseToken.
//
// A load that fails in any layer, and loaded pages that were lost in use, cost time and never the
// request: the sequence steps back and computes those tokens.
//
// Threads: externally synchronised. `backend`, `cache` and `timeline` outlive it; whoever made the
// cache finishes it.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/paging/page_table.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "engine_adapter/paging/timeline.h"
#include "kernels/sampling.h"

namespace kvstore::engine {

struct GenerateRequest {
  std::vector<uint32_t> prompt_ids;  // at least one
  int64_t max_tokens = 1;  // at least one; generation also stops at the model's end tokens
  kernels::SamplingOptions sampling;
  uint64_t seed = 0;
  Timeline::Time arrival = Timeline::Now();
};

// Errors: InvalidArgument, an empty prompt, a token outside the vocabulary, max_tokens < 1, or more
// tokens than the model has positions (numbers named).
absl::Status CheckRequest(const ModelConfig& config, const GenerateRequest& request);

class Sequence {
 public:
  // `timeline` may be null. Errors: those of CheckRequest; ResourceExhausted, no memory for pages.
  static absl::StatusOr<std::unique_ptr<Sequence>> Create(Backend& backend, PrefixCache& cache,
                                                          GenerateRequest request,
                                                          Timeline* timeline);
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  // Finds what can be reused and starts to load it. Once, first.
  void LoadPrefix();

  // Waits until all that is loaded has arrived or failed for good: passes then have no gate, and go
  // into batches. Without it the first pass waits layer by layer. Errors: those of NewPage.
  absl::Status WaitLoaded();

  // The next tokens to be computed, at most `rows_max` (at least one); with room for logits when
  // they are the last ones. Ends at a multiple of the block where it can. Valid until EndPass().
  // Requires: !HasLogits(). Errors: those of NewPage.
  absl::StatusOr<ForwardPass> NextPass(int64_t rows_max);

  // What the back-end said about the last NextPass(). On OK its tokens are done, and full blocks are
  // published; where loaded pages turned out to be lost, the sequence has stepped back behind those
  // that are left, and goes on. Errors: `status`; those of NewPage.
  absl::Status EndPass(const absl::Status& status);

  // All tokens so far are computed: the next one can be chosen.
  bool HasLogits() const { return position_ == num_tokens(); }
  std::span<const float> logits() const { return logits_; }
  uint32_t ChooseToken();  // requires HasLogits() and !IsDone()

  // max_tokens are chosen, or the last one is an end token.
  bool IsDone() const { return num_output() >= request_.max_tokens || HasEnded(); }
  // The last token is one of the model's end tokens.
  bool HasEnded() const;

  const GenerateRequest& request() const { return request_; }
  int64_t num_prompt() const { return static_cast<int64_t>(request_.prompt_ids.size()); }
  int64_t num_output() const { return num_tokens() - num_prompt(); }
  std::span<const uint32_t> output_ids() const {
    return std::span(tokens_).subspan(request_.prompt_ids.size());
  }
  int64_t num_pending() const { return num_tokens() - position_; }  // tokens to be computed
  int64_t position() const { return position_; }  // tokens that are loaded or computed
  // Prompt tokens that were not computed: at most num_prompt() - 1.
  int64_t reused_tokens() const;

 private:
  Sequence(Backend& backend, PrefixCache& cache, GenerateRequest request, Timeline* timeline,
           PageTable table);

  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  void StartBehindLoaded();
  int64_t WaitReady(int64_t layer);
  absl::Status StepBack(int64_t ready_blocks);
  void PublishFullBlocks();

  Backend& backend_;
  PrefixCache& cache_;
  const GenerateRequest request_;
  Timeline* const timeline_;
  PageTable table_;
  const int64_t block_tokens_;
  std::vector<uint32_t> tokens_;  // prompt, then output
  std::vector<float> logits_;
  std::vector<kernels::SampleCandidate> candidates_;
  kernels::SampleGenerator generator_;
  int64_t loaded_blocks_ = 0;
  int64_t published_blocks_ = 0;  // loaded ones count as published
  int64_t position_ = 0;          // tokens before it have their keys and values
  bool is_gated_ = false;         // loaded slices have not all been waited for
  // The pass between NextPass() and EndPass().
  int64_t pass_end_ = 0;
  int64_t ready_blocks_ = 0;
};

}  // namespace kvstore::engine
