// AnswerStream is one answer in the making: the engine puts tokens in, whoever serves the client takes
// text out.
//
// Bounded by what the request may generate: max_tokens tokens and their text.
// Threads: OnToken and OnEnd on the engine's thread, Take on any other; `on_news` is called on the
// engine's, without a lock.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/serving/answer_text.h"
#include "engine_adapter/serving/token_sink.h"

namespace kvstore::engine {

// When whoever serves the client is told that there is something to take.
enum class Notify : uint8_t { kEachToken, kAtEnd };

class AnswerStream final : public TokenSink {
 public:
  // What came since the last Take().
  struct News {
    std::string text;  // whole characters, no part of a stop string
    std::vector<uint32_t> token_ids;
    std::optional<AnswerEnd> end;  // nothing comes after it

    bool is_empty() const { return text.empty() && token_ids.empty() && !end.has_value(); }
  };

  // `tokenizer` outlives it.
  AnswerStream(const Tokenizer& tokenizer, std::vector<std::string> stops, Notify notify,
               std::function<void()> on_news)
      : notify_(notify), on_news_(std::move(on_news)), text_(tokenizer, std::move(stops)) {}

  bool OnToken(uint32_t token) override;
  void OnEnd(const AnswerEnd& end) override;

  News Take() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const Notify notify_;
  const std::function<void()> on_news_;
  AnswerText text_;  // the engine's thread
  mutable absl::Mutex mutex_;
  News news_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::engine
