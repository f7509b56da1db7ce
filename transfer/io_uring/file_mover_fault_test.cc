// The file mover against a scripted kernel: every result that a kernel may give, in every order.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "transfer/io_uring/file_mover.h"

namespace kvstore::transfer {
namespace {

// A kernel that does what the test says: `on_start` decides the results of each request, now or
// later.
class ScriptedKernel {
 public:
  std::function<void(ScriptedKernel&, const IoRequest&)> on_start;
  std::function<void(ScriptedKernel&, uint64_t tag)> on_cancel = [](ScriptedKernel&, uint64_t) {};

  void Report(uint64_t tag, int32_t result) {
    absl::MutexLock lock(&mutex);
    results.push_back({tag, result});
  }

  absl::Mutex mutex;
  std::vector<IoResult> results;
  bool woken = false;
  std::vector<IoRequest> started;  // with copies of the first part
  std::vector<iovec> first_parts;
};

class ScriptedBackend final : public IoBackend {
 public:
  explicit ScriptedBackend(ScriptedKernel& kernel) : kernel_(kernel) {}
  bool Start(const IoRequest& request) override {
    {
      absl::MutexLock lock(&kernel_.mutex);
      kernel_.started.push_back(request);
      kernel_.first_parts.push_back(request.parts[0]);
    }
    kernel_.on_start(kernel_, request);
    return true;
  }
  void Cancel(uint64_t tag) override { kernel_.on_cancel(kernel_, tag); }
  void Flush() override {}
  void Wait(absl::Duration timeout, std::vector<IoResult>& results) override {
    absl::MutexLock lock(&kernel_.mutex);
    const auto has_news = [this] { return kernel_.woken || !kernel_.results.empty(); };
    kernel_.mutex.AwaitWithTimeout(absl::Condition(&has_news), timeout);
    kernel_.woken = false;
    results.insert(results.end(), kernel_.results.begin(), kernel_.results.end());
    kernel_.results.clear();
  }
  void Wake() override {
    absl::MutexLock lock(&kernel_.mutex);
    kernel_.woken = true;
  }
  int RegisterFile(int) override { return -1; }
  absl::StatusOr<int> RegisterBuffer(MutableRegion) override {
    return absl::UnimplementedError("scripted");
  }
  void UnregisterBuffer(int) override {}

 private:
  ScriptedKernel& kernel_;
};

class FileMoverFaultTest : public testing::Test {
 protected:
  void Make(uint32_t depth = 4, uint32_t inflight_max = 64, uint64_t pieces_bytes_max = 1 << 20) {
    FileMover::Options options{
        .queue_depth = depth, .inflight_max = inflight_max, .pieces_bytes_max = pieces_bytes_max};
    options.make_backend = [this]() -> absl::StatusOr<std::unique_ptr<IoBackend>> {
      return std::make_unique<ScriptedBackend>(kernel_);
    };
    mover_ = *FileMover::Create(std::move(options), clock_);
    file_ = mover_->AddFile(0);
  }
  FileResult Read(size_t bytes, absl::Duration limit = absl::InfiniteDuration()) {
    FileResult result;
    absl::Notification done;
    FileOperation read{.file = file_, .offset = 8192, .buffer = {memory_, bytes}};
    if (limit != absl::InfiniteDuration()) read.deadline = clock_.Now() + limit;
    read.done = [&](FileResult r) {
      result = std::move(r);
      done.Notify();
    };
    EXPECT_TRUE(mover_->Submit(std::move(read)).ok());
    done.WaitForNotification();
    return result;
  }

  MonotonicClock clock_;
  ScriptedKernel kernel_;
  std::byte memory_[1 << 16] = {};
  FileId file_;
  std::unique_ptr<FileMover> mover_;
};

int32_t Bytes(const IoRequest& request) {
  size_t bytes = 0;
  for (int i = 0; i < request.num_parts; ++i) bytes += request.parts[i].iov_len;
  return static_cast<int32_t>(bytes);
}

TEST_F(FileMoverFaultTest, AShortTransferIsContinuedWhereItStopped) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, std::min(Bytes(request), 4096));
  };
  Make();
  EXPECT_TRUE(Read(3 * 4096).status.ok());
  ASSERT_EQ(kernel_.started.size(), 3u);
  EXPECT_EQ(kernel_.started[2].offset, 8192u + 2 * 4096);
  EXPECT_EQ(kernel_.first_parts[2].iov_base, memory_ + 2 * 4096);
  EXPECT_EQ(kernel_.first_parts[2].iov_len, 4096u);
  EXPECT_EQ(mover_->stats().continued_operations, 2u);
}

TEST_F(FileMoverFaultTest, ContinuesAcrossTheTail) {
  std::byte tail[4096];
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, kernel.started.size() == 1 ? 8192 + 512 : Bytes(request));
  };
  Make();
  absl::Notification done;
  absl::Status status;
  FileOperation write{.direction = FileDirection::kWrite,
                      .file = file_,
                      .buffer = {memory_, 8192},
                      .tail = {tail, 4096}};
  write.done = [&](FileResult r) {
    status = r.status;
    done.Notify();
  };
  ASSERT_TRUE(mover_->Submit(std::move(write)).ok());
  done.WaitForNotification();
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(kernel_.first_parts[1].iov_base, tail + 512);
  EXPECT_EQ(kernel_.first_parts[1].iov_len, 4096u - 512);
  EXPECT_EQ(kernel_.started[1].offset, 8192u + 512);
}

class FileMoverPieces : public FileMoverFaultTest {
 protected:
  struct Outcome {
    std::vector<uint64_t> told;
    FileResult result;
    absl::Notification done;
  };
  // Reads two pieces of 4096 and a tail of 4096 from `offset`.
  void Start(Outcome& outcome, uint64_t offset, FileOperation::CheckPiece check_piece,
             absl::Time deadline = absl::InfiniteFuture()) {
    FileOperation read{.file = file_,
                       .offset = offset,
                       .buffer = {memory_ + offset, 8192},
                       .tail = {memory_ + offset + 8192, 4096},
                       .deadline = deadline,
                       .piece_bytes = 4096};
    read.check_piece = [&outcome, check = std::move(check_piece)](uint64_t moved_bytes) mutable {
      outcome.told.push_back(moved_bytes);
      return check(moved_bytes);
    };
    read.done = [&outcome](FileResult result) {
      outcome.result = std::move(result);
      outcome.done.Notify();
    };
    ASSERT_TRUE(mover_->Submit(std::move(read)).ok());
  }
  static absl::Status Fine(uint64_t) { return absl::OkStatus(); }
  std::vector<uint64_t> Offsets() {
    absl::MutexLock lock(&kernel_.mutex);
    std::vector<uint64_t> offsets;
    for (const IoRequest& request : kernel_.started) offsets.push_back(request.offset);
    return offsets;
  }
};

TEST_F(FileMoverPieces, TailsComeFirstAndThenPiecesInTurn) {
  std::vector<IoRequest> held;
  std::atomic<int> num_held{0};
  kernel_.on_start = [&](ScriptedKernel& kernel, const IoRequest& request) {
    if (held.size() == 2) return kernel.Report(request.tag, Bytes(request));
    held.push_back(request);
    ++num_held;
  };
  Make(/*depth=*/2);
  Outcome a, b;
  Start(a, 0, Fine);
  Start(b, 16384, Fine);
  while (num_held.load() < 2) absl::SleepFor(absl::Milliseconds(1));
  {
    absl::MutexLock lock(&kernel_.mutex);  // both in one look of the progress thread
    kernel_.results = {{held[0].tag, 4096}, {held[1].tag, 4096}};
  }
  a.done.WaitForNotification();
  b.done.WaitForNotification();
  EXPECT_TRUE(a.result.status.ok() && b.result.status.ok());
  EXPECT_EQ(Offsets(), (std::vector<uint64_t>{8192, 16384 + 8192, 0, 16384, 4096, 16384 + 4096}));
  EXPECT_EQ(a.told, (std::vector<uint64_t>{0, 4096, 8192}));
  EXPECT_EQ(mover_->stats().read_bytes, 2u * 12288);
}

TEST_F(FileMoverPieces, WhatComesLaterBeginsWhenTheFirstEnd) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, Bytes(request));
  };
  Make(/*depth=*/4, /*inflight_max=*/64, /*pieces_bytes_max=*/2 * 12288);
  Outcome reads[4];
  for (uint64_t i = 0; i < 4; ++i) {
    const auto must_be_let_in = [i, &reads](uint64_t) {
      EXPECT_TRUE(i < 2 || reads[0].done.HasBeenNotified() || reads[1].done.HasBeenNotified());
      absl::SleepFor(absl::Milliseconds(2));  // all four are there by then
      return absl::OkStatus();
    };
    Start(reads[i], i * 12288, must_be_let_in);
  }
  for (Outcome& read : reads) {
    read.done.WaitForNotification();
    EXPECT_TRUE(read.result.status.ok());
  }
}

TEST_F(FileMoverPieces, WhatWaitsToBeLetInEndsAtItsDeadline) {
  kernel_.on_start = [](ScriptedKernel&, const IoRequest&) {};  // nothing ends
  kernel_.on_cancel = [](ScriptedKernel& kernel, uint64_t tag) { kernel.Report(tag, -ECANCELED); };
  Make(/*depth=*/4, /*inflight_max=*/64, /*pieces_bytes_max=*/12288);
  Outcome first, second, third;
  const absl::Time deadline = clock_.Now() + absl::Milliseconds(30);
  Start(first, 0, Fine, deadline + absl::Milliseconds(30));
  Start(second, 12288, Fine, deadline);
  second.done.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(second.result.status));
  EXPECT_EQ(second.result.error_number, 0) << "the device was not asked";
  first.done.WaitForNotification();
  Start(third, 24576, Fine, clock_.Now() + absl::Milliseconds(20));
  third.done.WaitForNotification();
  EXPECT_EQ(third.result.error_number, ETIME) << "it was let in";
}

TEST_F(FileMoverPieces, AShortPieceIsContinuedBeforeItIsTold) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, std::min(Bytes(request), 2048));
  };
  Make();
  Outcome read;
  Start(read, 0, Fine);
  read.done.WaitForNotification();
  EXPECT_TRUE(read.result.status.ok());
  EXPECT_EQ(Offsets(), (std::vector<uint64_t>{8192, 10240, 0, 2048, 4096, 6144}));
  EXPECT_EQ(read.told, (std::vector<uint64_t>{0, 4096, 8192}));
}

TEST_F(FileMoverPieces, NothingMoreIsReadOfWhatIsWrong) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, Bytes(request));
  };
  Make();
  Outcome read;
  Start(read, 0, [](uint64_t moved_bytes) {
    return moved_bytes == 0 ? absl::OkStatus() : absl::DataLossError("differs");
  });
  read.done.WaitForNotification();
  EXPECT_TRUE(absl::IsDataLoss(read.result.status));
  EXPECT_EQ(Offsets(), (std::vector<uint64_t>{8192, 0}));
  EXPECT_EQ(mover_->stats().in_flight, 0u);
}

TEST_F(FileMoverPieces, ADeadlineBetweenTwoPiecesIsKept) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, Bytes(request));
  };
  Make();
  Outcome read;
  const absl::Time deadline = clock_.Now() + absl::Milliseconds(20);
  Start(
      read, 0,
      [&](uint64_t) {
        absl::SleepFor(deadline + absl::Milliseconds(5) - clock_.Now());
        return absl::OkStatus();
      },
      deadline);
  read.done.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(read.result.status)) << read.result.status;
  EXPECT_EQ(Offsets().size(), 1u);
}

TEST_F(FileMoverFaultTest, AnOddShortTransferIsAFailure) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, 100);
  };
  Make();
  EXPECT_TRUE(absl::IsUnavailable(Read(4096).status));
}

TEST_F(FileMoverFaultTest, NothingMovedIsAFailure) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, 0);
  };
  Make();
  EXPECT_TRUE(absl::IsUnavailable(Read(4096).status));
}

TEST_F(FileMoverFaultTest, MoreThanAskedIsAFailure) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, 8192);
  };
  Make();
  EXPECT_TRUE(absl::IsInternal(Read(4096).status));
}

TEST_F(FileMoverFaultTest, AgainAndInterruptedAreTriedAgain) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    const int32_t results[] = {-EAGAIN, -EINTR, -EAGAIN};
    const size_t n = kernel.started.size() - 1;
    kernel.Report(request.tag, n < 3 ? results[n] : Bytes(request));
  };
  Make();
  EXPECT_TRUE(Read(4096).status.ok());
  EXPECT_EQ(kernel_.started.size(), 4u);
  EXPECT_EQ(mover_->stats().retried_operations, 3u);
}

TEST_F(FileMoverFaultTest, AgainForEverEndsAtTheDeadline) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, -EAGAIN);
  };
  Make();
  EXPECT_TRUE(absl::IsDeadlineExceeded(Read(4096, absl::Milliseconds(20)).status));
}

TEST_F(FileMoverFaultTest, InterruptedForEverEnds) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, -EINTR);
  };
  Make();
  EXPECT_TRUE(absl::IsUnavailable(Read(4096).status));
}

TEST_F(FileMoverFaultTest, DeviceErrorsKeepTheirErrno) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(request.tag, -EIO);
  };
  Make();
  const FileResult result = Read(4096);
  EXPECT_TRUE(absl::IsUnavailable(result.status));
  EXPECT_EQ(result.error_number, EIO);
  EXPECT_EQ(mover_->stats().errors, 1u);
}

// The first request's second completion must not end the second request, although it has the same
// index.
TEST_F(FileMoverFaultTest, ACompletionThatComesTwiceEndsNobodyElse) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    if (kernel.started.size() == 1) {
      kernel.Report(request.tag, Bytes(request));
    } else {
      kernel.Report(kernel.started[0].tag, Bytes(request));  // stale, looks like success
      kernel.Report(request.tag, -EIO);                      // the truth
    }
  };
  Make();
  EXPECT_TRUE(Read(4096).status.ok());
  EXPECT_TRUE(absl::IsUnavailable(Read(4096).status));
  EXPECT_EQ(mover_->stats().stale_completions, 1u);
}

TEST_F(FileMoverFaultTest, CompletionsForNobodyAreDropped) {
  kernel_.on_start = [](ScriptedKernel& kernel, const IoRequest& request) {
    kernel.Report(0xffffffff, 4096);
    kernel.Report(request.tag ^ (uint64_t{1} << 40), 4096);
    kernel.Report(request.tag ^ 1, 4096);
    kernel.Report(request.tag, 4096);
  };
  Make();
  EXPECT_TRUE(Read(4096).status.ok());
  EXPECT_EQ(mover_->stats().stale_completions, 3u);
}

TEST_F(FileMoverFaultTest, ALateOperationIsDoneOnlyAfterTheKernelLetGo) {
  absl::Notification cancelled;
  uint64_t tag = 0;
  kernel_.on_start = [&](ScriptedKernel&, const IoRequest& request) { tag = request.tag; };
  kernel_.on_cancel = [&](ScriptedKernel&, uint64_t cancelled_tag) {
    EXPECT_EQ(cancelled_tag, tag);
    cancelled.Notify();
  };
  Make();
  std::atomic<bool> is_done = false;
  absl::Notification done;
  absl::Status status;
  FileOperation read{.file = file_, .buffer = {memory_, 4096}};
  read.deadline = clock_.Now() + absl::Milliseconds(5);
  read.done = [&](FileResult r) {
    status = r.status;
    is_done = true;
    done.Notify();
  };
  ASSERT_TRUE(mover_->Submit(std::move(read)).ok());
  cancelled.WaitForNotification();
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(is_done);  // the kernel still has the buffer
  kernel_.Report(tag, -ECANCELED);
  done.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_EQ(mover_->stats().deadline_misses, 1u);
}

TEST_F(FileMoverFaultTest, AStalledOperationDoesNotHoldUpOthers) {
  uint64_t stalled_tag = 0;
  kernel_.on_start = [&](ScriptedKernel& kernel, const IoRequest& request) {
    if (kernel.started.size() == 1) {
      stalled_tag = request.tag;
    } else {
      kernel.Report(request.tag, Bytes(request));
    }
  };
  Make();
  FileOperation stalled{.file = file_, .buffer = {memory_, 4096}};
  ASSERT_TRUE(mover_->Submit(std::move(stalled)).ok());
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(Read(4096).status.ok());
  kernel_.Report(stalled_tag, 4096);
  mover_->Stop();
}

// Results in random order, doubled, short, EAGAIN and EIO: each operation ends exactly once, and
// never OK unless all its bytes moved.
TEST_F(FileMoverFaultTest, RandomKernelsEndEveryOperationOnceAndTruly) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    ScriptedKernel kernel;
    std::mt19937 random(seed);
    std::vector<std::pair<uint64_t, int32_t>> held;
    std::map<uint64_t, int64_t> moved;  // by offset / 64 KiB: which operation
    std::vector<uint64_t> old_tags;
    kernel.on_start = [&](ScriptedKernel& self, const IoRequest& request) {
      const int32_t bytes = Bytes(request);
      int32_t result = bytes;
      switch (random() % 8) {
        case 0:
          result = -EAGAIN;
          break;
        case 1:
          result = -EIO;
          break;
        case 2:
          result = std::max(512, bytes / 2 / 512 * 512);
          break;
        case 3:
          result = bytes > 512 ? 511 : bytes;
          break;
        default:
          break;
      }
      if (result > 0) moved[request.offset >> 16] += result;
      held.emplace_back(request.tag, result);
      if (!old_tags.empty() && random() % 4 == 0) {
        self.Report(old_tags[random() % old_tags.size()], bytes);
      }
      // Holds at most 3 of 4 back: the queue always moves on.
      while (held.size() > 3 || (!held.empty() && random() % 2 == 0)) {
        const size_t pick = random() % held.size();
        self.Report(held[pick].first, held[pick].second);
        old_tags.push_back(held[pick].first);
        held.erase(held.begin() + static_cast<ptrdiff_t>(pick));
      }
    };
    kernel.on_cancel = [&](ScriptedKernel& self, uint64_t tag) {
      for (size_t i = 0; i < held.size(); ++i) {
        if (held[i].first != tag) continue;
        self.Report(tag, held[i].second);
        held.erase(held.begin() + static_cast<ptrdiff_t>(i));
        return;
      }
    };
    FileMover::Options options{.queue_depth = 4, .inflight_max = 64};
    options.make_backend = [&]() -> absl::StatusOr<std::unique_ptr<IoBackend>> {
      return std::make_unique<ScriptedBackend>(kernel);
    };
    auto mover = *FileMover::Create(std::move(options), clock_);
    const FileId file = mover->AddFile(0);
    constexpr int kCount = 60;
    std::vector<int> ends(kCount, 0);
    std::vector<bool> is_ok(kCount, false);
    for (int i = 0; i < kCount; ++i) {
      FileOperation read{.file = file, .offset = uint64_t(i) << 16, .buffer = {memory_, 16384}};
      read.deadline = clock_.Now() + absl::Milliseconds(20);
      read.done = [&, i](FileResult r) {
        ++ends[i];
        is_ok[i] = r.status.ok();
      };
      ASSERT_TRUE(mover->Submit(std::move(read)).ok());
    }
    mover->Stop();
    for (int i = 0; i < kCount; ++i) {
      EXPECT_EQ(ends[i], 1) << i;
      if (is_ok[i]) {
        EXPECT_EQ(moved[i], 16384) << i;
      }
    }
    EXPECT_EQ(mover->stats().in_flight, 0u);
  }
}

}  // namespace
}  // namespace kvstore::transfer
