// Scheduler runs many requests on one back-end: continuous batching with chunked prefill.
//
//   waiting -> loading -> running -> closing -> gone
//
// Waiting: a bounded queue, first come first served. Loading: the prefix is matched and loaded on a
// thread of its own, so a slow store delays that request only; it joins the batch when all its
// pages have arrived. Running: every step computes one token of each sequence that decodes, and
// fills what is left of `step_tokens` with pieces of prompts, the oldest first. Closing: the answer
// is complete; what is left to save is saved, then pages and leases are given back.
//
// What a request gets is what generate.h gives it alone, bit for bit (Backend::ForwardBatch).
//
// Threads: Submit, Cancel, state and Stop are thread-safe. One engine thread computes; as many
// threads as sequences_max load and close.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/sequence.h"
#include "engine_adapter/serving/serving_metrics.h"
#include "engine_adapter/serving/task_threads.h"
#include "engine_adapter/serving/token_sink.h"

namespace kvstore::engine {

// Where prefixes are loaded, and pages saved and given back.
enum class PageWork : uint8_t {
  kOwnThreads,   // beside the engine: a slow store delays its own request only
  kEngineThread  // for a back-end whose pages belong to the thread that computes: all requests wait
};

struct SchedulerOptions {
  int64_t queue_max = 64;     // requests that wait; the next one is refused
  int64_t sequences_max = 8;  // loading, running or closing
  int64_t kv_tokens_max = 0;  // of all those together, in whole blocks; at least one block
  PageWork page_work = PageWork::kOwnThreads;
  // Told of each request that fails, on the engine's thread; may be empty.
  std::function<void(const absl::Status&)> on_failure = nullptr;
  int64_t step_tokens = 256;  // computed in one step: what a decode step of others may wait for

  static constexpr int64_t kQueueMax = 1 << 16;
  static constexpr int64_t kSequencesMax = 1024;

  // Errors: InvalidArgument naming the field.
  absl::Status Validate(const Backend& backend) const;
};

class Scheduler {
 public:
  // The pages of one request; called on the engine's thread, must not block.
  using PageSource = std::function<std::unique_ptr<PrefixCache>()>;

  // `backend`, used by nobody else, and `metrics` outlive it. Requires: valid options.
  Scheduler(Backend& backend, PageSource source, const SchedulerOptions& options,
            ServingMetrics& metrics);
  ~Scheduler();  // Stop(now)

  // Takes a request; `sink` gets its tokens and its end. Errors: InvalidArgument, one that the model
  // or kv_tokens_max cannot hold (numbers named); ResourceExhausted, the queue is full; Unavailable,
  // no request is taken any more.
  absl::Status Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends the request of `sink` at its next step. Its OnEnd still comes.
  void Cancel(TokenSink& sink) ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes no new requests from now on; those that are here go on.
  void StartDraining() ABSL_LOCKS_EXCLUDED(mutex_);
  // StartDraining, waits for what is here until `deadline`, cancels the rest, ends the threads.
  // Idempotent. Returns the number of requests that were cancelled.
  int64_t Stop(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

  SchedulerState state() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t kv_tokens_max() const { return options_.kv_tokens_max; }

 private:
  struct Job {
    GenerateRequest request;
    std::shared_ptr<TokenSink> sink;
    int64_t kv_tokens = 0;
    std::unique_ptr<PrefixCache> cache;
    std::unique_ptr<Sequence> sequence;
    Timeline::Time last_token;
    std::optional<EndReason> ended;
    absl::Status status;  // where it ended with kFailed
  };
  using JobPtr = std::unique_ptr<Job>;

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsEmpty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What changed since the last step; false when the engine is to end.
  bool TakeNews(std::vector<JobPtr>& started, std::vector<JobPtr>& cancelled)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void StartLoad(JobPtr job);
  void Load(Job& job);
  void RunPageTask(TaskThreads::Task task);
  void RunStep();
  void AddPass(Job& job);
  void AdvanceJob(Job& job, const absl::Status& computed);
  static void Fail(Job& job, const absl::Status& status);
  void ReportEnd(const Job& job);
  void Close(JobPtr job) ABSL_LOCKS_EXCLUDED(mutex_);

  Backend& backend_;
  const PageSource source_;
  const SchedulerOptions options_;
  const int64_t step_rows_;
  ServingMetrics& metrics_;

  // The engine's thread. running_ in the order of arrival in the batch.
  std::vector<JobPtr> running_;
  std::vector<Job*> batch_;
  std::vector<ForwardPass> passes_;
  int64_t rows_left_ = 0;

  mutable absl::Mutex mutex_;
  std::deque<JobPtr> waiting_ ABSL_GUARDED_BY(mutex_);
  std::vector<JobPtr> arrived_ ABSL_GUARDED_BY(mutex_);  // their pages have
  SchedulerState state_ ABSL_GUARDED_BY(mutex_);         // all of it but `waiting`
  bool has_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancels_all_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  TaskThreads page_threads_;
  std::thread engine_;
};

}  // namespace kvstore::engine
