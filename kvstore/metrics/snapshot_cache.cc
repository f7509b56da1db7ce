#include "kvstore/metrics/snapshot_cache.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"

namespace kvstore::metrics {

struct SnapshotCache::Question {
  absl::Notification is_answered;
  MetricsSnapshot snapshot;  // written before the notification, read after it
};

SnapshotCache::SnapshotCache(Ask ask, const Clock& clock) : ask_(std::move(ask)), clock_(clock) {}
SnapshotCache::~SnapshotCache() = default;

absl::StatusOr<MetricsSnapshot> SnapshotCache::Get() {
  const absl::Time now = clock_.Now();
  if (latest_.has_value() && now - latest_at_ < kKeptFor) return *latest_;
  // An answer that came after we had stopped waiting is old by now.
  if (question_ != nullptr && question_->is_answered.HasBeenNotified()) question_.reset();
  if (question_ == nullptr) {
    auto question = std::make_shared<Question>();
    const bool is_asked = ask_([question](MetricsSnapshot snapshot) {
      question->snapshot = std::move(snapshot);
      question->is_answered.Notify();
    });
    if (!is_asked) return absl::UnavailableError("the core is behind");
    question_ = std::move(question);
  }
  if (!question_->is_answered.WaitForNotificationWithTimeout(kWaitMax))
    return absl::DeadlineExceededError("the core does not answer");
  latest_ = std::move(question_->snapshot);
  latest_at_ = clock_.Now();
  question_.reset();
  return *latest_;
}

}  // namespace kvstore::metrics
