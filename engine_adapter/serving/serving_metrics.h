// ServingMetrics counts what the serving engine does, and shows it as a Prometheus page.
//
// Threads: thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "engine_adapter/serving/token_sink.h"
#include "kvstore/base/latency_histogram.h"

namespace kvstore::engine {

// Where the scheduler's requests are, at one moment.
struct SchedulerState {
  int64_t waiting = 0;    // for a place
  int64_t loading = 0;    // for their pages
  int64_t running = 0;    // in batches
  int64_t closing = 0;    // answered, saving their pages
  int64_t kv_tokens = 0;  // room for keys and values that requests hold
  bool is_draining = false;
};

class ServingMetrics {
 public:
  // Requests that were refused, by what was in the way.
  enum class Refusal : uint8_t { kInvalid, kQueueFull, kDraining };

  void CountRefused(Refusal why) { ++refused_[static_cast<size_t>(why)]; }
  void CountEnd(const AnswerEnd& end) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the last step said; steps of a device that has failed all fail.
  void CountStepResult(bool is_ok) {
    is_failing_ = !is_ok;
    if (!is_ok) ++failed_steps_;
  }
  bool is_failing() const { return is_failing_; }
  // A step of `sequences` that computed `tokens`.
  void CountStep(int64_t sequences, int64_t tokens, absl::Duration took);

  LatencyHistogram queue_time;  // from arrival until its pages are asked for
  LatencyHistogram load_time;   // until those have arrived
  LatencyHistogram ttft;        // from arrival to the first token
  LatencyHistogram tpot;        // each token after it

  std::atomic<int64_t> connections{0};  // of the HTTP server, now
  std::atomic<uint64_t> evicted_connections{0};

  std::string Page(const SchedulerState& state) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::array<std::atomic<uint64_t>, 3> refused_{};
  std::array<std::atomic<uint64_t>, 4> ended_{};  // by EndReason
  std::atomic<uint64_t> prompt_tokens_{0};
  std::atomic<uint64_t> reused_tokens_{0};
  std::atomic<uint64_t> output_tokens_{0};
  std::array<std::atomic<uint64_t>, kNumBlockSources> reused_blocks_{};
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> step_sequences_{0};
  std::atomic<uint64_t> step_tokens_{0};
  std::atomic<uint64_t> failed_steps_{0};
  std::atomic<bool> is_failing_{false};
  LatencyHistogram step_time_;

  mutable absl::Mutex mutex_;
  // Reasons are names of status codes: a small set.
  std::map<std::string, uint64_t> load_failures_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::engine
