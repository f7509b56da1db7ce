// Timeline records what one request did when, and writes it as a Chrome trace (chrome://tracing,
// ui.perfetto.dev).
//
// Threads: Add is thread-safe. Bounded: spans beyond kSpansMax are counted and dropped.
#pragma once

#include <absl/status/status.h>

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace kvstore::engine {

class Timeline {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr size_t kSpansMax = 1 << 20;

  // Rows of the picture.
  enum class Track : uint8_t { kRequest, kCompute, kLoad, kSave };

  Timeline() : origin_(Now()) {}
  static Time Now() { return std::chrono::steady_clock::now(); }

  // A span named `name`; `index` (layer, block or chunk) is shown beside it.
  void Add(Track track, std::string_view name, int64_t index, Time begin, Time end);

  // Trace Event Format, JSON object form, microseconds since construction. Errors: those of the
  // file system.
  absl::Status Write(const std::string& path) const;

 private:
  struct Span {
    Track track;
    std::string name;
    int64_t index;
    Time begin;
    Time end;
  };

  const Time origin_;
  mutable std::mutex mutex_;
  std::vector<Span> spans_;  // guarded by mutex_
  size_t num_dropped_ = 0;   // guarded by mutex_
};

}  // namespace kvstore::engine
