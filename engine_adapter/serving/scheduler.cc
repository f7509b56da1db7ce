#include "engine_adapter/serving/scheduler.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

absl::Duration Since(Timeline::Time begin) { return absl::FromChrono(Timeline::Now() - begin); }

absl::Status CheckRange(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; valid are ", min, " to ", max));
}

}  // namespace

absl::Status SchedulerOptions::Validate(const Backend& backend) const {
  RETURN_IF_ERROR(CheckRange("queue_max", queue_max, 0, kQueueMax));
  RETURN_IF_ERROR(CheckRange("sequences_max", sequences_max, 1, kSequencesMax));
  RETURN_IF_ERROR(CheckRange("step_tokens", step_tokens, sequences_max, INT64_MAX));
  RETURN_IF_ERROR(CheckRange("sequences_max", sequences_max, 1, backend.pass_tokens_max()));
  return CheckRange("kv_tokens_max", kv_tokens_max, backend.kv_layout().block_tokens, INT64_MAX);
}

Scheduler::Scheduler(Backend& backend, PageSource source, const SchedulerOptions& options,
                     ServingMetrics& metrics)
    : backend_(backend),
      source_(std::move(source)),
      options_(options),
      step_rows_(std::min(options.step_tokens, backend.pass_tokens_max())),
      metrics_(metrics),
      page_threads_("kv-pages", static_cast<size_t>(options.sequences_max),
                    static_cast<size_t>(2 * options.sequences_max)),
      engine_([this] { Run(); }) {
  pthread_setname_np(engine_.native_handle(), "kv-engine");
}

Scheduler::~Scheduler() { Stop(absl::InfinitePast()); }

// --- From outside

absl::Status Scheduler::Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink) {
  RETURN_IF_ERROR(CheckRequest(backend_.config(), request));
  const KvLayout& layout = backend_.kv_layout();
  const auto tokens = static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens;
  const int64_t kv_tokens = layout.BlocksOf(tokens) * layout.block_tokens;
  if (kv_tokens > options_.kv_tokens_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a prompt of ", request.prompt_ids.size(), " tokens and max_tokens ", request.max_tokens,
        " need room for more than the ", options_.kv_tokens_max, " tokens that this server has"));
  }
  auto job = std::make_unique<Job>();
  job->request = std::move(request);
  job->sink = std::move(sink);
  job->kv_tokens = kv_tokens;
  absl::MutexLock lock(&mutex_);
  if (state_.is_draining) return absl::UnavailableError("the server is ending");
  // Those that a place is free for do not count as waiting.
  if (static_cast<int64_t>(waiting_.size()) >= options_.queue_max &&
      !(waiting_.empty() && HasRoom())) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting_.size(), " requests are waiting; try again later"));
  }
  waiting_.push_back(std::move(job));
  return absl::OkStatus();
}

void Scheduler::Cancel(TokenSink& sink) {
  sink.Cancel();
  absl::MutexLock lock(&mutex_);
  has_cancelled_ = true;
}

void Scheduler::StartDraining() {
  absl::MutexLock lock(&mutex_);
  state_.is_draining = true;
}

int64_t Scheduler::Stop(absl::Time deadline) {
  if (!engine_.joinable()) return 0;
  int64_t left = 0;
  {
    absl::MutexLock lock(&mutex_);
    state_.is_draining = true;
    const absl::Condition is_empty(this, &Scheduler::IsEmpty);
    if (!mutex_.AwaitWithDeadline(is_empty, deadline)) {
      left = static_cast<int64_t>(waiting_.size()) + state_.loading + state_.running;
      cancels_all_ = has_cancelled_ = true;
      mutex_.Await(is_empty);  // bounded: every wait of a PrefixCache has a deadline
    }
    is_stopping_ = true;
  }
  engine_.join();
  return left;
}

SchedulerState Scheduler::state() const {
  absl::MutexLock lock(&mutex_);
  SchedulerState state = state_;
  state.waiting = static_cast<int64_t>(waiting_.size());
  return state;
}

// --- The engine's thread

bool Scheduler::HasRoom() const {
  const int64_t open = state_.loading + state_.running + state_.closing;
  return open < options_.sequences_max &&
         (waiting_.empty() ||
          state_.kv_tokens + waiting_.front()->kv_tokens <= options_.kv_tokens_max);
}

bool Scheduler::HasNews() const {
  return is_stopping_ || has_cancelled_ || !arrived_.empty() || (!waiting_.empty() && HasRoom());
}

bool Scheduler::IsEmpty() const {
  return waiting_.empty() && state_.loading + state_.running + state_.closing == 0;
}

bool Scheduler::TakeNews(std::vector<JobPtr>& started, std::vector<JobPtr>& cancelled) {
  absl::MutexLock lock(&mutex_);
  if (running_.empty()) mutex_.Await(absl::Condition(this, &Scheduler::HasNews));
  if (is_stopping_) return false;
  if (std::exchange(has_cancelled_, false)) {
    const auto stays = [cancels_all = cancels_all_](const JobPtr& job) {
      return !cancels_all && !job->sink->is_cancelled();
    };
    const auto first = std::stable_partition(waiting_.begin(), waiting_.end(), stays);
    std::move(first, waiting_.end(), std::back_inserter(cancelled));
    waiting_.erase(first, waiting_.end());
  }
  while (!waiting_.empty() && HasRoom()) {
    ++state_.loading;
    state_.kv_tokens += waiting_.front()->kv_tokens;
    started.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  for (JobPtr& job : arrived_) {
    --state_.loading;
    ++state_.running;
    running_.push_back(std::move(job));
  }
  arrived_.clear();
  if (cancels_all_) {
    for (const JobPtr& job : running_) job->sink->Cancel();
  }
  return true;
}

void Scheduler::Run() {
  for (;;) {
    std::vector<JobPtr> started, cancelled;
    if (!TakeNews(started, cancelled)) return;
    for (const JobPtr& job : cancelled) {
      job->ended = EndReason::kCancelled;
      ReportEnd(*job);
    }
    for (JobPtr& job : started) StartLoad(std::move(job));
    RunStep();
  }
}

// The sequence and its cache are made here; they belong to the page thread until the job is in
// arrived_, then to the engine's until it is closed.
void Scheduler::StartLoad(JobPtr job) {
  metrics_.queue_time.Record(Since(job->request.arrival));
  job->cache = source_();
  auto sequence = Sequence::Create(backend_, *job->cache, job->request, nullptr);
  if (sequence.ok()) {
    job->sequence = *std::move(sequence);
  } else {
    Fail(*job, sequence.status());
  }
  // Shared with the task, since a task is copyable; it takes the job out.
  auto shared = std::make_shared<JobPtr>(std::move(job));
  RunPageTask([this, shared] {
    JobPtr loading = std::move(*shared);
    Load(*loading);
    absl::MutexLock lock(&mutex_);
    arrived_.push_back(std::move(loading));
  });
}

// Always taken: there is a thread for each job from its load to its end.
void Scheduler::RunPageTask(TaskThreads::Task task) {
  if (options_.page_work == PageWork::kEngineThread) return task();
  (void)page_threads_.Post(std::move(task));
}

void Scheduler::Load(Job& job) {
  if (job.ended.has_value() || job.sink->is_cancelled()) return;
  const Timeline::Time begin = Timeline::Now();
  job.sequence->LoadPrefix();
  if (const absl::Status loaded = job.sequence->WaitLoaded(); !loaded.ok()) Fail(job, loaded);
  metrics_.load_time.Record(Since(begin));
}

void Scheduler::RunStep() {
  passes_.clear();
  batch_.clear();
  rows_left_ = step_rows_;
  for (const JobPtr& job : running_) {
    if (job->sink->is_cancelled()) job->ended = EndReason::kCancelled;
  }
  for (const JobPtr& job : running_) {
    if (!job->ended.has_value() && job->sequence->num_pending() == 1) AddPass(*job);
  }
  for (const JobPtr& job : running_) {
    if (!job->ended.has_value() && job->sequence->num_pending() > 1) AddPass(*job);
  }
  if (!batch_.empty()) {
    const Timeline::Time begin = Timeline::Now();
    const absl::Status computed = backend_.ForwardBatch(passes_);
    metrics_.CountStep(static_cast<int64_t>(batch_.size()), step_rows_ - rows_left_, Since(begin));
    metrics_.CountStepResult(computed.ok());
    for (Job* const job : batch_) AdvanceJob(*job, computed);
  }
  for (JobPtr& job : running_) {
    if (!job->ended.has_value()) continue;
    ReportEnd(*job);
    Close(std::move(job));
  }
  std::erase(running_, nullptr);
}

void Scheduler::AddPass(Job& job) {
  if (rows_left_ == 0) return;
  absl::StatusOr<ForwardPass> pass = job.sequence->NextPass(rows_left_);
  if (!pass.ok()) return Fail(job, pass.status());
  rows_left_ -= static_cast<int64_t>(pass->token_ids.size());
  passes_.push_back(*std::move(pass));
  batch_.push_back(&job);
}

void Scheduler::AdvanceJob(Job& job, const absl::Status& computed) {
  Sequence& sequence = *job.sequence;
  if (const absl::Status status = sequence.EndPass(computed); !status.ok()) {
    return Fail(job, status);
  }
  if (!sequence.HasLogits()) return;
  const uint32_t token = sequence.ChooseToken();
  const bool is_first = sequence.num_output() == 1;
  const Timeline::Time now = Timeline::Now();
  (is_first ? metrics_.ttft : metrics_.tpot)
      .Record(absl::FromChrono(now - (is_first ? job.request.arrival : job.last_token)));
  job.last_token = now;
  const bool wants_more = job.sink->OnToken(token);
  if (!wants_more || sequence.HasEnded()) {
    job.ended = EndReason::kStop;
  } else if (sequence.IsDone()) {
    job.ended = EndReason::kLength;
  }
}

void Scheduler::Fail(Job& job, const absl::Status& status) {
  job.ended = EndReason::kFailed;
  job.status = status;
}

void Scheduler::ReportEnd(const Job& job) {
  AnswerEnd end{.reason = *job.ended,
                .status = job.status,
                .prompt_tokens = static_cast<int64_t>(job.request.prompt_ids.size())};
  if (job.sequence != nullptr) {
    end.output_tokens = job.sequence->num_output();
    end.reused_tokens = job.sequence->reused_tokens();
    end.load = job.cache->load();
  }
  metrics_.CountEnd(end);
  if (end.reason == EndReason::kFailed && options_.on_failure) options_.on_failure(end.status);
  job.sink->OnEnd(end);
}

// Saving and giving back may wait for the store: on the job's page thread.
void Scheduler::Close(JobPtr job) {
  {
    absl::MutexLock lock(&mutex_);
    --state_.running;
    ++state_.closing;
  }
  job->sink.reset();
  auto shared = std::make_shared<JobPtr>(std::move(job));
  RunPageTask([this, shared] {
    JobPtr closing = std::move(*shared);
    const int64_t kv_tokens = closing->kv_tokens;
    closing->cache->Finish();
    closing.reset();
    absl::MutexLock lock(&mutex_);
    --state_.closing;
    state_.kv_tokens -= kv_tokens;
  });
}

}  // namespace kvstore::engine
