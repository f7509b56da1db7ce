#include "engine_adapter/serving/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine_adapter/serving/test_model.h"

namespace kvstore::engine {
namespace {

using testing::HasSubstr;

// Keeps what comes.
class TestSink final : public TokenSink {
 public:
  explicit TestSink(size_t wanted = SIZE_MAX) : wanted_(wanted) {}

  bool OnToken(uint32_t token) override {
    absl::MutexLock lock(&mutex_);
    tokens_.push_back(token);
    return tokens_.size() < wanted_;
  }
  void OnEnd(const AnswerEnd& end) override {
    EXPECT_FALSE(ended_.HasBeenNotified());
    end_ = end;
    ended_.Notify();
  }

  const AnswerEnd& Wait() {
    EXPECT_TRUE(ended_.WaitForNotificationWithTimeout(absl::Seconds(30)));
    return end_;
  }
  bool has_ended() const { return ended_.HasBeenNotified(); }
  std::vector<uint32_t> tokens() {
    absl::MutexLock lock(&mutex_);
    return tokens_;
  }
  void WaitForTokens(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto has = [this, count]()
                         ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return tokens_.size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&has), absl::Seconds(30)));
  }

 private:
  const size_t wanted_;
  absl::Mutex mutex_;
  std::vector<uint32_t> tokens_;
  AnswerEnd end_;
  absl::Notification ended_;
};

// Private pages; where there is a gate, LoadPrefix waits for it, and Finish counts.
struct Pages {
  std::shared_ptr<absl::Notification> load_gate;
  std::shared_ptr<absl::Notification> finish_gate;
  std::atomic<int> open{0};
};

class GatedPages final : public PrefixCache {
 public:
  GatedPages(PageMemory& memory, Pages& pages)
      : private_(memory), pages_(pages), gate_(pages.load_gate), finish_gate_(pages.finish_gate) {
    ++pages_.open;
  }
  ~GatedPages() override { EXPECT_TRUE(is_finished_); }

  PrefixLoad LoadPrefix(std::span<const uint32_t> tokens) override {
    if (gate_ != nullptr) gate_->WaitForNotification();
    return private_.LoadPrefix(tokens);
  }
  const std::byte* LoadedPage(int64_t) const override { return nullptr; }
  int64_t WaitReady(int64_t) override { return 0; }
  bool IsIntact() override { return true; }
  absl::StatusOr<std::byte*> NewPage(int64_t block) override { return private_.NewPage(block); }
  void PublishPage(int64_t, std::span<const uint32_t>) override {}
  void Finish() override {
    if (finish_gate_ != nullptr) finish_gate_->WaitForNotification();
    private_.Finish();
    is_finished_ = true;
    --pages_.open;
  }
  const PrefixLoad& load() const override { return private_.load(); }

 private:
  PrivatePages private_;
  Pages& pages_;
  const std::shared_ptr<absl::Notification> gate_, finish_gate_;
  bool is_finished_ = false;
};

class SchedulerTest : public testing::Test {
 protected:
  // With a pass that takes at least 5 ms no long answer ends by itself while a test looks on.
  void StartSlow(const SchedulerOptions& options) {
    slow_.pass_ms = 5;
    Start(options, slow_);
  }
  void Start(const SchedulerOptions& options) { Start(options, *model_.backend); }

  void Start(SchedulerOptions options, Backend& backend) {
    if (options.kv_tokens_max == 0) options.kv_tokens_max = 1 << 20;
    ASSERT_TRUE(options.Validate(*model_.backend).ok());
    scheduler_ = std::make_unique<Scheduler>(
        backend,
        [this] { return std::make_unique<GatedPages>(model_.backend->page_memory(), pages_); },
        options, metrics_);
  }

  GenerateRequest Request(uint32_t seed, int64_t prompt, int64_t max_tokens) {
    std::mt19937 random(seed);
    GenerateRequest request;
    for (int64_t i = 0; i < prompt; ++i) request.prompt_ids.push_back(random() % 256);
    request.max_tokens = max_tokens;
    request.seed = seed;
    return request;
  }

  std::shared_ptr<TestSink> Submit(const GenerateRequest& request, size_t wanted = SIZE_MAX) {
    auto sink = std::make_shared<TestSink>(wanted);
    const absl::Status status = scheduler_->Submit(request, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }

  void WaitUntilEmpty() {
    const auto is_empty = [this] {
      const SchedulerState state = scheduler_->state();
      return state.waiting + state.loading + state.running + state.closing == 0;
    };
    for (int i = 0; i < 3000 && !is_empty(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(is_empty());
    EXPECT_EQ(pages_.open, 0);
  }

  TestModel model_;
  FaultyBackend slow_{*model_.backend};
  Pages pages_;
  ServingMetrics metrics_;
  std::unique_ptr<Scheduler> scheduler_;  // ends first
};

TEST_F(SchedulerTest, EveryRequestGetsWhatItWouldGetAlone) {
  std::vector<GenerateRequest> requests;
  std::vector<std::vector<uint32_t>> alone;
  for (uint32_t i = 0; i < 24; ++i) {
    requests.push_back(Request(i, 1 + i * 13 % 200, 1 + i * 7 % 40));
    if (i % 3 == 0) requests.back().sampling = {.temperature = 1.5f, .top_k = 40, .top_p = 0.9f};
    alone.push_back(model_.Alone(requests.back()));
  }
  for (const int64_t step_tokens : {8, 24, 64}) {
    Start({.sequences_max = 6, .step_tokens = step_tokens});
    std::vector<std::shared_ptr<TestSink>> sinks;
    for (const GenerateRequest& request : requests) sinks.push_back(Submit(request));
    for (size_t i = 0; i < sinks.size(); ++i) {
      const AnswerEnd& end = sinks[i]->Wait();
      EXPECT_EQ(end.reason, EndReason::kLength);
      EXPECT_EQ(end.prompt_tokens, static_cast<int64_t>(requests[i].prompt_ids.size()));
      EXPECT_EQ(sinks[i]->tokens(), alone[i]) << i << " in steps of " << step_tokens;
    }
    scheduler_.reset();
  }
  WaitUntilEmpty();
}

TEST_F(SchedulerTest, ALongPromptDoesNotStopOthersThatDecode) {
  Start({.sequences_max = 2, .step_tokens = 4});
  const auto decoding = Submit(Request(1, 1, 400));
  decoding->WaitForTokens(1);
  const auto prompt = Submit(Request(2, 500, 1));
  prompt->Wait();
  // 500 tokens, 3 a step beside the other's one: at least as many steps, a token in each.
  EXPECT_GE(decoding->tokens().size(), 160u);
}

TEST_F(SchedulerTest, ARequestWhoseLoadHangsDoesNotDelayOthers) {
  const auto gate = std::make_shared<absl::Notification>();
  Start({.sequences_max = 2, .step_tokens = 16});
  pages_.load_gate = gate;
  const auto slow = Submit(Request(1, 40, 3));
  while (pages_.open < 1) absl::SleepFor(absl::Milliseconds(1));
  pages_.load_gate = nullptr;
  for (uint32_t i = 2; i < 6; ++i) Submit(Request(i, 40, 3))->Wait();
  EXPECT_FALSE(slow->has_ended());
  gate->Notify();
  slow->Wait();
  EXPECT_EQ(slow->tokens(), model_.Alone(Request(1, 40, 3)));
}

TEST_F(SchedulerTest, AFullQueueRefusesAndTheOthersFinish) {
  const auto gate = std::make_shared<absl::Notification>();
  pages_.load_gate = gate;
  Start({.queue_max = 2, .sequences_max = 1, .step_tokens = 16});
  std::vector<std::shared_ptr<TestSink>> sinks = {Submit(Request(0, 5, 2))};
  while (scheduler_->state().loading != 1) absl::SleepFor(absl::Milliseconds(1));
  for (uint32_t i = 1; i < 3; ++i) sinks.push_back(Submit(Request(i, 5, 2)));
  const absl::Status refused = scheduler_->Submit(Request(3, 5, 2), std::make_shared<TestSink>());
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  gate->Notify();
  for (const auto& sink : sinks) EXPECT_EQ(sink->Wait().reason, EndReason::kLength);
}

TEST_F(SchedulerTest, RequestsBeyondTheMemoryWaitAndOnesThatNeverFitAreRefused) {
  Start({.sequences_max = 4, .kv_tokens_max = 64, .step_tokens = 16});
  const auto first = Submit(Request(1, 30, 18)), second = Submit(Request(2, 30, 18));
  EXPECT_LE(scheduler_->state().kv_tokens, 64);
  first->Wait();
  second->Wait();
  const absl::Status refused = scheduler_->Submit(Request(3, 50, 15), std::make_shared<TestSink>());
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("64"));
}

TEST_F(SchedulerTest, CancellingEndsARequestWhereverItIsAndGivesItsPagesBack) {
  const auto gate = std::make_shared<absl::Notification>();
  StartSlow({.sequences_max = 2, .step_tokens = 16});
  const auto running = Submit(Request(1, 20, 490));
  running->WaitForTokens(2);
  pages_.load_gate = gate;
  const auto loading = Submit(Request(2, 20, 50));
  while (pages_.open < 2) absl::SleepFor(absl::Milliseconds(1));
  const auto waiting = Submit(Request(3, 20, 50));
  for (const auto& sink : {waiting, running, loading}) scheduler_->Cancel(*sink);
  EXPECT_EQ(waiting->Wait().reason, EndReason::kCancelled);
  EXPECT_EQ(running->Wait().reason, EndReason::kCancelled);
  EXPECT_LT(running->tokens().size(), 490u);
  gate->Notify();
  EXPECT_EQ(loading->Wait().reason, EndReason::kCancelled);
  EXPECT_TRUE(loading->tokens().empty());
  WaitUntilEmpty();
  EXPECT_EQ(scheduler_->state().kv_tokens, 0);
}

TEST_F(SchedulerTest, ASinkThatHasEnoughEndsItsRequest) {
  Start({.step_tokens = 16});
  const auto sink = Submit(Request(1, 20, 100), 3);
  EXPECT_EQ(sink->Wait().reason, EndReason::kStop);
  EXPECT_EQ(sink->tokens().size(), 3u);
}

TEST_F(SchedulerTest, DrainingFinishesWhatIsHereAndTakesNoMore) {
  Start({.sequences_max = 1, .step_tokens = 16});
  const auto first = Submit(Request(1, 20, 30)), second = Submit(Request(2, 20, 30));
  scheduler_->StartDraining();
  const absl::Status late = scheduler_->Submit(Request(3, 5, 1), std::make_shared<TestSink>());
  EXPECT_EQ(late.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(scheduler_->Stop(absl::InfiniteFuture()), 0);
  EXPECT_EQ(first->Wait().reason, EndReason::kLength);
  EXPECT_EQ(second->Wait().reason, EndReason::kLength);
}

TEST_F(SchedulerTest, StoppingCancelsWhatIsNotDoneInTime) {
  StartSlow({.sequences_max = 1, .step_tokens = 16});
  const auto running = Submit(Request(1, 20, 490)), waiting = Submit(Request(2, 20, 490));
  running->WaitForTokens(1);
  EXPECT_EQ(scheduler_->Stop(absl::Now()), 2);
  EXPECT_EQ(running->Wait().reason, EndReason::kCancelled);
  EXPECT_EQ(waiting->Wait().reason, EndReason::kCancelled);
  EXPECT_EQ(pages_.open, 0);
}

// The answer is out before its pages are saved; its place is free only after that.
TEST_F(SchedulerTest, ASlowSaveHoldsAPlaceAndNotTheAnswer) {
  const auto gate = std::make_shared<absl::Notification>();
  pages_.finish_gate = gate;
  Start({.sequences_max = 1, .step_tokens = 16});
  Submit(Request(1, 20, 2))->Wait();
  const auto next = Submit(Request(2, 20, 2));
  while (scheduler_->state().closing != 1) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(scheduler_->state().waiting, 1);
  EXPECT_FALSE(next->has_ended());
  gate->Notify();
  next->Wait();
}

TEST_F(SchedulerTest, PageWorkOnTheEnginesThreadGivesTheSameTokens) {
  Start({.sequences_max = 3, .page_work = PageWork::kEngineThread, .step_tokens = 16});
  std::vector<std::shared_ptr<TestSink>> sinks;
  for (uint32_t i = 0; i < 5; ++i) sinks.push_back(Submit(Request(i, 30, 10)));
  for (uint32_t i = 0; i < 5; ++i) {
    sinks[i]->Wait();
    EXPECT_EQ(sinks[i]->tokens(), model_.Alone(Request(i, 30, 10)));
  }
}

TEST_F(SchedulerTest, AStepThatFailsEndsItsRequestsWithItsReasonAndShows) {
  FaultyBackend backend(*model_.backend);
  std::atomic<int> told{0};
  Scheduler scheduler(
      backend,
      [this] { return std::make_unique<GatedPages>(model_.backend->page_memory(), pages_); },
      {.kv_tokens_max = 1 << 16, .on_failure = [&told](const absl::Status&) { ++told; }}, metrics_);
  const auto run = [&] {
    const auto sink = std::make_shared<TestSink>();
    EXPECT_TRUE(scheduler.Submit(Request(1, 20, 3), sink).ok());
    return sink->Wait();
  };
  backend.has_failed = true;
  const AnswerEnd failed = run();
  EXPECT_EQ(failed.reason, EndReason::kFailed);
  EXPECT_EQ(failed.status, absl::UnavailableError("the device is lost"));
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(metrics_.is_failing());
  backend.has_failed = false;
  EXPECT_EQ(run().reason, EndReason::kLength);
  EXPECT_FALSE(metrics_.is_failing());
  scheduler.Stop(absl::InfiniteFuture());
  EXPECT_EQ(pages_.open, 0);
}

TEST_F(SchedulerTest, RefusesOptionsThatCannotWork) {
  for (const SchedulerOptions& options :
       {SchedulerOptions{.sequences_max = 0, .kv_tokens_max = 64},
        SchedulerOptions{.sequences_max = 65, .kv_tokens_max = 64},  // more than a pass has rows
        SchedulerOptions{.kv_tokens_max = 15}, SchedulerOptions{.queue_max = -1},
        SchedulerOptions{.sequences_max = 8, .kv_tokens_max = 64, .step_tokens = 7}}) {
    EXPECT_EQ(options.Validate(*model_.backend).code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace kvstore::engine
