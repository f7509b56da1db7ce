#include "transfer/cuda/copy_engine.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/status_macros.h"
#include "transfer/cuda/copy_lane.h"

namespace kvstore::transfer {
namespace {

// While something moves: a batch takes 20 us (256 x 4 KiB) to 600 us.
constexpr long kPollNanoseconds = 20'000;
constexpr absl::Duration kProbeEvery = absl::Milliseconds(250);
constexpr absl::Duration kLookAtDeadlinesEvery = absl::Milliseconds(1);

void Pause() {
  const timespec pause = {0, kPollNanoseconds};
  nanosleep(&pause, nullptr);
}

}  // namespace

// The progress thread and what it shares with the others.
class CopyEngine::Progress {
 public:
  Progress(Options options, std::shared_ptr<CudaContext> context, const Clock& clock)
      : options_(std::move(options)), context_(std::move(context)), clock_(clock) {}
  ~Progress() {
    if (probe_event_ != nullptr) (void)context_->driver().DestroyEvent(probe_event_);
    if (probe_stream_ != nullptr) (void)context_->driver().DestroyStream(probe_stream_);
  }

  absl::Status Open();
  absl::StatusOr<CopyId> Submit(CopyOperation operation) ABSL_LOCKS_EXCLUDED(mutex_);
  void Cancel(CopyId id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t in_flight() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return in_flight_;
  }
  const Options& options() const { return options_; }

 private:
  using Copy = CopyLane::Copy;

  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return is_stopping_ || !submitted_.empty() || !cancelled_.empty();
  }
  void Run();
  // False: stopping, and nothing is left.
  bool Turn();
  void TakeNews();
  void WatchDevice(bool has_moved);
  void Probe(absl::Time now);
  void Report(std::unique_ptr<Copy> copy, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  bool has_batches() const { return lanes_[0]->has_batches() || lanes_[1]->has_batches(); }
  bool is_idle() const { return lanes_[0]->is_idle() && lanes_[1]->is_idle(); }

  const Options options_;
  const std::shared_ptr<CudaContext> context_;  // shared with the tier's memory
  const Clock& clock_;

  mutable absl::Mutex mutex_;
  std::deque<std::unique_ptr<Copy>> submitted_ ABSL_GUARDED_BY(mutex_);
  std::vector<CopyId> cancelled_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;

  // Of the progress thread.
  std::array<std::unique_ptr<CopyLane>, 2> lanes_;  // [direction]
  CUstream probe_stream_ = nullptr;
  CUevent probe_event_ = nullptr;
  bool is_probing_ = false;
  absl::Time probed_ = absl::InfinitePast();
  absl::Time moved_ = absl::InfinitePast();  // last time that the device finished something
  absl::Time looked_at_deadlines_ = absl::InfinitePast();
  absl::Time give_up_at_ = absl::InfiniteFuture();  // set by Stop()
  bool has_told_waiting_ = false;                   // of the failure

  std::thread thread_;
};

absl::Status CopyEngine::Progress::Open() {
  RETURN_IF_ERROR(context_->Bind());
  CudaDriver& driver = context_->driver();
  RETURN_IF_ERROR(context_->Check(driver.CreateStream(0, &probe_stream_), "stream"));
  RETURN_IF_ERROR(context_->Check(driver.CreateEvent(&probe_event_), "event"));
  for (std::unique_ptr<CopyLane>& lane : lanes_) {
    lane = std::make_unique<CopyLane>(options_, *context_,
                                      [this](std::unique_ptr<Copy> copy, absl::Status status) {
                                        Report(std::move(copy), std::move(status));
                                      });
    RETURN_IF_ERROR(lane->Open());
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), options_.name.substr(0, 15).c_str());
  return absl::OkStatus();
}

absl::StatusOr<CopyId> CopyEngine::Progress::Submit(CopyOperation operation) {
  if (operation.pieces.empty()) return absl::InvalidArgumentError("a copy of no pieces");
  for (const CopyPiece& piece : operation.pieces) {
    if (piece.bytes == 0) return absl::InvalidArgumentError("a copy with an empty piece");
  }
  if (context_->has_failed()) return context_->failure();
  auto copy = std::make_unique<Copy>();
  copy->operation = std::move(operation);
  absl::MutexLock lock(&mutex_);
  if (is_stopping_) return absl::FailedPreconditionError("the copy engine is stopped");
  if (in_flight_ >= options_.inflight_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.inflight_max, " copies are in flight, the most allowed"));
  }
  ++in_flight_;
  const CopyId id = copy->id = CopyId(++last_id_);
  submitted_.push_back(std::move(copy));
  return id;
}

void CopyEngine::Progress::Cancel(CopyId id) {
  absl::MutexLock lock(&mutex_);
  cancelled_.push_back(id);
}

void CopyEngine::Progress::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void CopyEngine::Progress::Run() {
  // The kernel's default lets 20 us become 70.
  prctl(PR_SET_TIMERSLACK, 1000UL);
  if (!context_->Bind().ok()) Probe(clock_.Now());
  while (Turn()) {
  }
  (void)context_->driver().SetContext(nullptr);
}

bool CopyEngine::Progress::Turn() {
  if (has_batches()) {
    Pause();
  } else {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &Progress::HasNews), kProbeEvery);
  }
  TakeNews();
  bool has_moved = false;
  for (const std::unique_ptr<CopyLane>& lane : lanes_) has_moved |= lane->TakeFinished();
  const absl::Time now = clock_.Now();
  if (now >= looked_at_deadlines_ + kLookAtDeadlinesEvery) {
    looked_at_deadlines_ = now;
    for (const std::unique_ptr<CopyLane>& lane : lanes_) lane->EndLate(now);
  }
  const bool had_batches = has_batches();
  for (const std::unique_ptr<CopyLane>& lane : lanes_) lane->Feed();
  WatchDevice(has_moved || !had_batches);
  if (now >= give_up_at_ && !is_idle()) {
    for (const std::unique_ptr<CopyLane>& lane : lanes_) {
      lane->Abandon(absl::UnavailableError("stopped; the device did not answer"));
    }
    return false;
  }
  return give_up_at_ == absl::InfiniteFuture() || !is_idle();
}

void CopyEngine::Progress::TakeNews() {
  std::deque<std::unique_ptr<Copy>> submitted;
  std::vector<CopyId> cancelled;
  bool is_stopping;
  {
    absl::MutexLock lock(&mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    is_stopping = is_stopping_;
  }
  for (std::unique_ptr<Copy>& copy : submitted) {
    lanes_[static_cast<size_t>(copy->operation.direction)]->Add(std::move(copy));
    looked_at_deadlines_ = absl::InfinitePast();  // one may have passed already
    has_told_waiting_ = false;
  }
  for (const CopyId id : cancelled) {
    const absl::Status why = absl::CancelledError("the copy was cancelled");
    if (!lanes_[0]->End(id, why)) lanes_[1]->End(id, why);
  }
  if (is_stopping && give_up_at_ == absl::InfiniteFuture()) {
    give_up_at_ = clock_.Now() + options_.stop_max;
    for (const std::unique_ptr<CopyLane>& lane : lanes_) {
      lane->EndAll(absl::UnavailableError("stopped before the copy was over"));
    }
  }
}

// A context that has failed ends what waits; one that is silent fails.
void CopyEngine::Progress::WatchDevice(bool has_moved) {
  const absl::Time now = clock_.Now();
  if (has_moved) moved_ = now;
  if (!context_->has_failed()) {
    if (now >= probed_ + kProbeEvery || is_probing_) Probe(now);
    if (has_batches() && now > moved_ + options_.silence_max) {
      context_->Fail(absl::UnavailableError(absl::StrCat(
          "the CUDA device finished nothing for ", absl::FormatDuration(options_.silence_max))));
    }
  }
  if (context_->has_failed() && !has_told_waiting_) {
    has_told_waiting_ = true;
    for (const std::unique_ptr<CopyLane>& lane : lanes_) lane->EndAll(context_->failure());
  }
}

// Errors show in whatever is asked next: without work something is asked all the same.
void CopyEngine::Progress::Probe(absl::Time now) {
  CudaDriver& driver = context_->driver();
  if (!is_probing_) {
    probed_ = now;
    is_probing_ = context_->Check(driver.Record(probe_event_, probe_stream_), "probe").ok();
    return;
  }
  const CUresult result = driver.Query(probe_event_);
  if (result == CUDA_ERROR_NOT_READY) {
    if (now <= probed_ + options_.silence_max) return;
    context_->Fail(absl::UnavailableError(absl::StrCat(
        "the CUDA device does not answer for ", absl::FormatDuration(options_.silence_max))));
  }
  (void)context_->Check(result, "probe");
  is_probing_ = false;
}

void CopyEngine::Progress::Report(std::unique_ptr<Copy> copy, absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    --in_flight_;
  }
  copy->operation.done(std::move(status));
}

absl::Status CopyEngine::Options::Validate() const {
  const auto refused = [](const char* field, uint64_t value, const char* valid) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", valid: ", valid));
  };
  if (inflight_max == 0) return refused("inflight_max", inflight_max, "1 and above");
  if (pieces_in_batch == 0) return refused("pieces_in_batch", pieces_in_batch, "1 and above");
  if (bytes_in_batch == 0) return refused("bytes_in_batch", bytes_in_batch, "1 and above");
  if (batches_in_flight == 0) return refused("batches_in_flight", batches_in_flight, "1 and above");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CopyEngine>> CopyEngine::Create(Options options,
                                                               std::shared_ptr<CudaContext> context,
                                                               const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  auto progress = std::make_unique<Progress>(std::move(options), std::move(context), clock);
  RETURN_IF_ERROR(progress->Open());
  return absl::WrapUnique(new CopyEngine(std::move(progress)));
}

CopyEngine::CopyEngine(std::unique_ptr<Progress> progress) : progress_(std::move(progress)) {}
CopyEngine::~CopyEngine() { Stop(); }

absl::StatusOr<CopyId> CopyEngine::Submit(CopyOperation operation) {
  return progress_->Submit(std::move(operation));
}
void CopyEngine::Cancel(CopyId id) { progress_->Cancel(id); }
size_t CopyEngine::in_flight() const { return progress_->in_flight(); }
size_t CopyEngine::inflight_max() const { return progress_->options().inflight_max; }
void CopyEngine::Stop() { progress_->Stop(); }

}  // namespace kvstore::transfer
