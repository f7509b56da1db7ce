#include "engine_adapter/serving/answer_text.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace kvstore::engine {
namespace {

// The length of the longest suffix of `text` that `stop` starts with, but is not all of.
size_t BeginOf(std::string_view stop, std::string_view text) {
  for (size_t length = std::min(stop.size() - 1, text.size()); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

std::string AnswerText::Push(uint32_t token) {
  if (is_stopped_) return {};
  held_ += decoder_.Push(token).value_or("");
  return TakeCertain();
}

std::string AnswerText::Finish() {
  if (is_stopped_) return {};
  held_ += decoder_.Finish();
  std::string text = TakeCertain();
  return text + std::exchange(held_, {});
}

std::string AnswerText::TakeCertain() {
  size_t found_at = std::string::npos;
  size_t found_end = std::string::npos;
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    hold = std::max(hold, BeginOf(stop, held_));
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    if (std::pair(at + stop.size(), at) < std::pair(found_end, found_at)) {
      found_at = at;
      found_end = at + stop.size();
    }
  }
  if (found_at != std::string::npos) {
    is_stopped_ = true;
    std::string text = std::exchange(held_, {});
    text.resize(found_at);
    return text;
  }
  std::string text = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return text;
}

}  // namespace kvstore::engine
