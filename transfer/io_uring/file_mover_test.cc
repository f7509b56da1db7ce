// Both backends of the file mover on real files.
#include "transfer/io_uring/file_mover.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"

namespace kvstore::transfer {
namespace {

using BackendKind = FileMover::BackendKind;
constexpr size_t kSlotBytes = 64 << 10;

// An aligned buffer with distinct content.
class Buffer {
 public:
  explicit Buffer(size_t bytes, uint64_t seed = 0) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(std::aligned_alloc(4096, bytes));
    for (size_t i = 0; i < bytes; i += 8) {
      const uint64_t word = (seed + 1) * 0x9e3779b97f4a7c15 + i;
      std::memcpy(data_ + i, &word, 8);
    }
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  MutableRegion region() const { return {data_, bytes_}; }
  MutableRegion part(size_t at, size_t bytes) const { return {data_ + at, bytes}; }
  bool operator==(const Buffer& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0;
  }

 private:
  size_t bytes_;
  std::byte* data_;
};

class FileMoverTest : public testing::TestWithParam<BackendKind> {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/file_mover_test.XXXXXX";
    fd_ = mkostemp(name, O_DIRECT | O_CLOEXEC);
    ASSERT_GE(fd_, 0) << std::strerror(errno);
    unlink(name);
    ASSERT_EQ(posix_fallocate(fd_, 0, 16 << 20), 0);
  }
  void TearDown() override {
    mover_.reset();
    close(fd_);
  }
  void Make(FileMover::Options options = {}) {
    options.backend = GetParam();
    auto mover = FileMover::Create(std::move(options), clock_);
    ASSERT_TRUE(mover.ok()) << mover.status();
    mover_ = *std::move(mover);
    EXPECT_EQ(mover_->backend(), GetParam());
    file_ = mover_->AddFile(fd_);
  }
  FileResult Run(FileOperation operation) {
    FileResult result;
    absl::Notification done;
    operation.done = [&](FileResult r) {
      result = std::move(r);
      done.Notify();
    };
    absl::Status status = mover_->Submit(std::move(operation));
    if (!status.ok()) return {status, 0};
    done.WaitForNotification();
    return result;
  }
  FileOperation Write(uint64_t offset, MutableRegion buffer) {
    return {.direction = FileDirection::kWrite, .file = file_, .offset = offset, .buffer = buffer};
  }
  FileOperation Read(uint64_t offset, MutableRegion buffer) {
    return {.direction = FileDirection::kRead, .file = file_, .offset = offset, .buffer = buffer};
  }
  void AwaitRegistration(uint64_t bytes) {
    for (int i = 0; i < 5000; ++i) {
      const FileMoverStats stats = mover_->stats();
      if (stats.registered_bytes + stats.refused_bytes >= bytes) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
    FAIL() << "memory was not registered in 5 s";
  }

  MonotonicClock clock_;
  int fd_ = -1;
  FileId file_;
  std::unique_ptr<FileMover> mover_;
};

TEST_P(FileMoverTest, ReadsBackWhatItWrote) {
  Make();
  Buffer source(kSlotBytes, 1), target(kSlotBytes, 2);
  ASSERT_TRUE(Run(Write(3 * kSlotBytes, source.region())).status.ok());
  ASSERT_TRUE(Run(Read(3 * kSlotBytes, target.region())).status.ok());
  EXPECT_TRUE(source == target);
  EXPECT_EQ(mover_->stats().write_bytes, kSlotBytes);
  EXPECT_EQ(mover_->stats().read_bytes, kSlotBytes);
}

TEST_P(FileMoverTest, WritesTheTailBehindTheBuffer) {
  Make();
  Buffer source(kSlotBytes, 1), tail(4096, 2), target(kSlotBytes + 4096, 3);
  FileOperation write = Write(0, source.region());
  write.tail = tail.region();
  ASSERT_TRUE(Run(std::move(write)).status.ok());
  ASSERT_TRUE(Run(Read(0, target.region())).status.ok());
  EXPECT_EQ(std::memcmp(target.region().data, source.region().data, kSlotBytes), 0);
  EXPECT_EQ(std::memcmp(target.region().data + kSlotBytes, tail.region().data, 4096), 0);
}

TEST_P(FileMoverTest, KeepsManyOperationsApart) {
  constexpr int kCount = 200;
  Make({.queue_depth = 8, .inflight_max = kCount});
  std::vector<std::unique_ptr<Buffer>> sources, targets;
  absl::BlockingCounter writes(kCount), reads(kCount);
  std::atomic<int> failures = 0;
  for (int i = 0; i < kCount; ++i) {
    sources.push_back(std::make_unique<Buffer>(kSlotBytes, i));
    targets.push_back(std::make_unique<Buffer>(kSlotBytes, 1000 + i));
    FileOperation write = Write(i * kSlotBytes, sources[i]->region());
    write.done = [&](FileResult r) {
      failures += !r.status.ok();
      writes.DecrementCount();
    };
    ASSERT_TRUE(mover_->Submit(std::move(write)).ok());
  }
  writes.Wait();
  for (int i = 0; i < kCount; ++i) {
    FileOperation read = Read(i * kSlotBytes, targets[i]->region());
    read.done = [&](FileResult r) {
      failures += !r.status.ok();
      reads.DecrementCount();
    };
    ASSERT_TRUE(mover_->Submit(std::move(read)).ok());
  }
  reads.Wait();
  EXPECT_EQ(failures, 0);
  for (int i = 0; i < kCount; ++i) EXPECT_TRUE(*sources[i] == *targets[i]) << i;
}

TEST_P(FileMoverTest, UsesRegisteredMemoryAndForgetsIt) {
  Make();
  Buffer slab(4 * kSlotBytes, 1), target(kSlotBytes, 2);
  mover_->RegisterMemory(slab.region());
  AwaitRegistration(4 * kSlotBytes);
  ASSERT_TRUE(Run(Write(0, slab.part(kSlotBytes, kSlotBytes))).status.ok());
  const bool has_registration = GetParam() == BackendKind::kIoUring;
  EXPECT_EQ(mover_->stats().registered_operations, has_registration ? 1u : 0u);
  mover_->UnregisterMemory(slab.region());
  EXPECT_EQ(mover_->stats().registered_bytes, 0u);
  ASSERT_TRUE(Run(Write(kSlotBytes, slab.part(0, kSlotBytes))).status.ok());
  EXPECT_EQ(mover_->stats().registered_operations, has_registration ? 1u : 0u);
  ASSERT_TRUE(Run(Read(0, target.region())).status.ok());
  EXPECT_EQ(std::memcmp(target.region().data, slab.region().data + kSlotBytes, kSlotBytes), 0);
}

TEST_P(FileMoverTest, FreshMemoryAtAFormerAddressIsNotConfusedWithTheOldOne) {
  Make();
  void* address =
      mmap(nullptr, kSlotBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(address, MAP_FAILED);
  const MutableRegion region{static_cast<std::byte*>(address), kSlotBytes};
  std::memset(address, 1, kSlotBytes);
  mover_->RegisterMemory(region);
  AwaitRegistration(kSlotBytes);
  mover_->UnregisterMemory(region);
  ASSERT_EQ(mmap(address, kSlotBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            address);
  std::memset(address, 2, kSlotBytes);
  ASSERT_TRUE(Run(Write(0, region)).status.ok());
  Buffer target(kSlotBytes, 3);
  ASSERT_TRUE(Run(Read(0, target.region())).status.ok());
  EXPECT_EQ(static_cast<int>(target.region().data[17]), 2);
  munmap(address, kSlotBytes);
}

TEST_P(FileMoverTest, PrepareMayChangeTheTailAndFailTheWrite) {
  Make();
  Buffer source(kSlotBytes, 1), tail(4096, 2), target(4096, 3);
  FileOperation write = Write(0, source.region());
  write.tail = tail.region();
  write.prepare = [&](FileOperation&) {
    std::memset(tail.region().data, 0x5a, 4096);
    return absl::OkStatus();
  };
  ASSERT_TRUE(Run(std::move(write)).status.ok());
  ASSERT_TRUE(Run(Read(kSlotBytes, target.region())).status.ok());
  EXPECT_EQ(static_cast<int>(target.region().data[4095]), 0x5a);

  Buffer other(4096, 9);
  FileOperation refused = Write(kSlotBytes, other.region());
  refused.prepare = [](FileOperation&) { return absl::DataLossError("not what it should be"); };
  EXPECT_TRUE(absl::IsDataLoss(Run(std::move(refused)).status));
  Buffer again(4096, 4);
  ASSERT_TRUE(Run(Read(kSlotBytes, again.region())).status.ok());
  EXPECT_TRUE(target == again);
}

TEST_P(FileMoverTest, AFailedCheckFailsTheRead) {
  Make();
  Buffer target(kSlotBytes, 3);
  FileOperation read = Read(0, target.region());
  read.check = [] { return absl::DataLossError("flipped"); };
  EXPECT_TRUE(absl::IsDataLoss(Run(std::move(read)).status));
}

TEST_P(FileMoverTest, ReadBehindTheEndOfTheFileFails) {
  Make();
  Buffer target(kSlotBytes, 3);
  const FileResult result = Run(Read((16 << 20) - 4096, target.region()));
  EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
}

TEST_P(FileMoverTest, ABadBufferIsReportedAndDoesNoHarm) {
  Make();
  const MutableRegion nowhere{reinterpret_cast<std::byte*>(uintptr_t{4096}), kSlotBytes};
  EXPECT_TRUE(absl::IsInternal(Run(Read(0, nowhere)).status));
  Buffer target(kSlotBytes, 3);
  EXPECT_TRUE(Run(Read(0, target.region())).status.ok());
}

TEST_P(FileMoverTest, AFullQueueRefusesAtOnce) {
  Make({.queue_depth = 1, .inflight_max = 2});
  absl::Notification release, finished;
  Buffer buffer(kSlotBytes, 1);
  FileOperation blocking = Write(0, buffer.region());
  blocking.prepare = [&](FileOperation&) {
    release.WaitForNotification();
    return absl::OkStatus();
  };
  ASSERT_TRUE(mover_->Submit(std::move(blocking)).ok());
  FileOperation second = Write(kSlotBytes, buffer.region());
  second.done = [&](FileResult) { finished.Notify(); };
  ASSERT_TRUE(mover_->Submit(std::move(second)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(mover_->Submit(Write(0, buffer.region()))));
  release.Notify();
  finished.WaitForNotification();
  EXPECT_TRUE(Run(Write(0, buffer.region())).status.ok());
}

TEST_P(FileMoverTest, AnOperationThatWaitsTooLongIsNotStarted) {
  Make({.queue_depth = 1, .inflight_max = 8});
  absl::Notification release;
  Buffer slow(kSlotBytes, 1), late(kSlotBytes, 2), target(kSlotBytes, 3);
  ASSERT_TRUE(Run(Write(0, slow.region())).status.ok());
  FileOperation blocking = Write(kSlotBytes, slow.region());
  blocking.prepare = [&](FileOperation&) {
    release.WaitForNotification();
    return absl::OkStatus();
  };
  ASSERT_TRUE(mover_->Submit(std::move(blocking)).ok());
  FileOperation second = Write(0, late.region());
  second.deadline = clock_.Now() - absl::Milliseconds(1);
  absl::Notification finished;
  absl::Status status;
  second.done = [&](FileResult r) {
    status = r.status;
    finished.Notify();
  };
  ASSERT_TRUE(mover_->Submit(std::move(second)).ok());
  release.Notify();
  finished.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_EQ(mover_->stats().deadline_misses, 1u);
  ASSERT_TRUE(Run(Read(0, target.region())).status.ok());
  EXPECT_TRUE(target == slow);
}

TEST_P(FileMoverTest, StopFinishesWhatWasAcceptedAndRefusesMore) {
  Make({.queue_depth = 2, .inflight_max = 64});
  std::atomic<int> finished = 0;
  Buffer buffer(kSlotBytes, 1);
  for (int i = 0; i < 50; ++i) {
    FileOperation write = Write(i * kSlotBytes, buffer.region());
    write.done = [&](FileResult r) { finished += r.status.ok(); };
    ASSERT_TRUE(mover_->Submit(std::move(write)).ok());
  }
  mover_->Stop();
  EXPECT_EQ(finished, 50);
  EXPECT_TRUE(absl::IsFailedPrecondition(mover_->Submit(Write(0, buffer.region()))));
  mover_->Stop();
}

TEST_P(FileMoverTest, SleepsWhenIdle) {
  Make();
  Buffer buffer(kSlotBytes, 1);
  ASSERT_TRUE(Run(Write(0, buffer.region())).status.ok());
  timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  absl::SleepFor(absl::Milliseconds(300));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double ms = (after.tv_sec - before.tv_sec) * 1e3 + (after.tv_nsec - before.tv_nsec) / 1e6;
  // A spinning thread would need 300; the process's other threads may wake on a loaded machine.
  EXPECT_LT(ms, 60.0);
}

INSTANTIATE_TEST_SUITE_P(Backends, FileMoverTest,
                         testing::Values(BackendKind::kIoUring, BackendKind::kThreads),
                         [](const auto& param) {
                           return param.param == BackendKind::kIoUring ? "IoUring" : "Threads";
                         });

// Runs `body` in a child that cannot call `syscall_number` (EPERM); the child's exit status.
int RunWithout(int syscall_number, const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),  // seccomp_data.nr
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(syscall_number), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program{4, filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(99);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(FileMoverWithoutIoUring, FallsBackToThreadsAndNamesIt) {
  const int status = RunWithout(SYS_io_uring_setup, [] {
    const MonotonicClock clock;
    auto mover = FileMover::Create({}, clock);
    if (!mover.ok()) return 1;
    if ((*mover)->backend() != BackendKind::kThreads) return 2;
    if ((*mover)->degraded().find("Operation not permitted") == std::string::npos) return 3;
    auto forced = FileMover::Create({.backend = BackendKind::kIoUring}, clock);
    return absl::IsUnavailable(forced.status()) ? 0 : 4;
  });
  EXPECT_EQ(status, 0);
}

TEST(FileMoverWithoutLockedMemory, MovesUnregisteredAndNamesIt) {
  const int status = RunWithout(SYS_reboot, [] {  // for the child; the filter is beside the point
    // Another user: root is not held to the limit.
    const rlimit limit{64 << 10, 64 << 10};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setresgid(65534, 65534, 65534) != 0 ||
        setresuid(65534, 65534, 65534) != 0) {
      return 77;
    }
    const MonotonicClock clock;
    auto mover = FileMover::Create({.backend = BackendKind::kIoUring}, clock);
    if (!mover.ok()) return 1;
    Buffer slab(1 << 20, 1);
    (*mover)->RegisterMemory(slab.region());
    for (int i = 0; i < 5000 && (*mover)->stats().refused_bytes == 0; ++i) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    if ((*mover)->stats().refused_bytes != 1 << 20) return 2;
    if ((*mover)->degraded().find("RLIMIT_MEMLOCK") == std::string::npos) return 3;
    char name[] = "/var/tmp/file_mover_test.XXXXXX";
    const int fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0) return 4;
    unlink(name);
    absl::Notification done;
    bool is_ok = false;
    FileOperation write{
        .direction = FileDirection::kWrite, .file = (*mover)->AddFile(fd), .buffer = slab.region()};
    write.done = [&](FileResult r) {
      is_ok = r.status.ok();
      done.Notify();
    };
    if (!(*mover)->Submit(std::move(write)).ok()) return 5;
    done.WaitForNotification();
    return is_ok ? 0 : 6;
  });
  if (status == 77) GTEST_SKIP() << "needs root to become another user";
  EXPECT_EQ(status, 0);
}

TEST(FileMoverOptions, OutOfRangeIsRefused) {
  const MonotonicClock clock;
  EXPECT_TRUE(absl::IsInvalidArgument(FileMover::Create({.queue_depth = 0}, clock).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      FileMover::Create({.queue_depth = 64, .inflight_max = 8}, clock).status()));
}

}  // namespace
}  // namespace kvstore::transfer
