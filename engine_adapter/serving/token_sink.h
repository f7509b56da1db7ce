// TokenSink is where the tokens of one request go, and how whoever asked takes the request back.
#pragma once

#include <absl/status/status.h>

#include <atomic>
#include <cstdint>

#include "engine_adapter/paging/prefix_cache.h"

namespace kvstore::engine {

enum class EndReason : uint8_t {
  kStop,       // an end token of the model, or the sink wanted no more
  kLength,     // max_tokens
  kCancelled,  // nobody wants it any more
  kFailed      // AnswerEnd::status says why
};

struct AnswerEnd {
  EndReason reason = EndReason::kStop;
  absl::Status status;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;  // chosen, an end token included
  int64_t reused_tokens = 0;  // of the prompt, not computed
  PrefixLoad load;            // where they came from
};

class TokenSink {
 public:
  virtual ~TokenSink() = default;

  // The next token. False: no more are wanted. On the engine's thread: must not block.
  virtual bool OnToken(uint32_t token) = 0;
  // Once, after the last token; on the engine's thread.
  virtual void OnEnd(const AnswerEnd& end) = 0;

  // Wanted no longer: the request ends at its next step, wherever it is. Any thread; see
  // Scheduler::Cancel, which also wakes the engine.
  void Cancel() { is_cancelled_.store(true, std::memory_order_relaxed); }
  bool is_cancelled() const { return is_cancelled_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> is_cancelled_{false};
};

}  // namespace kvstore::engine
