// The way from the HTTP thread to the core: asks for a snapshot, waits for it for a bounded time,
// and keeps it for a moment, so that no number of HTTP clients costs the core more than ten
// questions a second.
//
// Confined to one thread (the HTTP server's), except for the answer, which comes from the core.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/metrics/metrics_snapshot.h"

namespace kvstore::metrics {

class SnapshotCache {
 public:
  static constexpr absl::Duration kKeptFor = absl::Milliseconds(100);
  static constexpr absl::Duration kWaitMax = absl::Seconds(1);

  // Passes `answer` on to whoever knows; it may run on another thread, once, also after this object
  // is gone. False: nobody will answer.
  using Answer = std::function<void(MetricsSnapshot)>;
  using Ask = std::function<bool(Answer answer)>;
  SnapshotCache(Ask ask, const Clock& clock);
  ~SnapshotCache();

  // Errors: Unavailable, the core takes no questions; DeadlineExceeded, no answer within kWaitMax
  // (the question stands: the next call waits for the same answer).
  absl::StatusOr<MetricsSnapshot> Get();

 private:
  struct Question;

  const Ask ask_;
  const Clock& clock_;
  std::shared_ptr<Question> question_;  // not answered yet, as far as we know
  std::optional<MetricsSnapshot> latest_;
  absl::Time latest_at_;
};

}  // namespace kvstore::metrics
