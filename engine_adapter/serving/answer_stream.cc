#include "engine_adapter/serving/answer_stream.h"

#include <utility>

namespace kvstore::engine {

bool AnswerStream::OnToken(uint32_t token) {
  const std::string text = text_.Push(token);
  {
    absl::MutexLock lock(&mutex_);
    news_.text += text;
    news_.token_ids.push_back(token);
  }
  if (notify_ == Notify::kEachToken) on_news_();
  return !text_.is_stopped();
}

void AnswerStream::OnEnd(const AnswerEnd& end) {
  const std::string text = text_.Finish();
  {
    absl::MutexLock lock(&mutex_);
    news_.text += text;
    news_.end = end;
  }
  on_news_();
}

AnswerStream::News AnswerStream::Take() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(news_, {});
}

}  // namespace kvstore::engine
