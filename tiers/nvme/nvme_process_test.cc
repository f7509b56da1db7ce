// The tier in processes of its own: killed, confined, out of descriptors or space. The parent never
// opens a tier itself: RocksDB's threads do not survive fork().
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <new>
#include <random>
#include <thread>

#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using BackendKind = transfer::FileMover::BackendKind;
constexpr int kSkipped = 77;

pid_t Spawn(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int code = body();
    std::fflush(stderr);
    _exit(code);
  }
  return child;
}

int WaitFor(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int Explain(int code, const absl::Status& status) {
  std::fprintf(stderr, "child: %d: %s\n", code, status.ToString().c_str());
  return code;
}

// Stores and reads back; 0 if all is well.
int UseTier(const NvmeOptions& options, bool recovers) {
  auto running = RunningTier::Start(options);
  if (!running.ok()) return Explain(1, running.status());
  if (recovers) {
    const absl::Status status = (*running)->Recover().finished;
    if (!status.ok()) return Explain(2, status);
  }
  for (uint32_t i = 0; i < 50; ++i) {
    TestPage content(i, kTestShape);
    auto page = (*running)->Store(content);
    if (!page.ok()) return Explain(3, page.status());
    const absl::Status status = (*running)->Check(*page, content);
    if (!status.ok()) return Explain(4, status);
    (*running)->Release(*page);
  }
  return 0;
}

TEST(NvmeProcess, WorksWith64Descriptors) {
  for (BackendKind backend : {BackendKind::kIoUring, BackendKind::kThreads}) {
    TestDirectory directory;
    NvmeOptions options = TestOptions(directory.path());
    options.backend = backend;
    for (int start = 0; start < 3; ++start) {
      EXPECT_EQ(WaitFor(Spawn([&] {
                  const rlimit limit{64, 64};
                  setrlimit(RLIMIT_NOFILE, &limit);
                  return UseTier(options, start > 0);
                })),
                0);
    }
  }
}

TEST(NvmeProcess, WithoutIoUringItRunsOnThreadsAndNamesIt) {
  TestDirectory directory;
  EXPECT_EQ(WaitFor(Spawn([&] {
              sock_filter filter[] = {
                  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
              };
              sock_fprog program{4, filter};
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
              if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 90;
              {
                auto running = RunningTier::Start(TestOptions(directory.path()));
                if (!running.ok()) return Explain(91, running.status());
                if ((*running)->tier().backend_name() != "pread/pwrite") return 92;
                if ((*running)->degraded().find("Function not implemented") == std::string::npos) {
                  return 93;
                }
              }
              return UseTier(TestOptions(directory.path()), false);
            })),
            0);
}

TEST(NvmeProcess, AReadOnlyDirectoryIsRefusedWithAdvice) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  TestDirectory directory;
  ASSERT_EQ(chown(directory.path().c_str(), 65534, 65534), 0);
  ASSERT_EQ(chmod(directory.path().c_str(), 0500), 0);
  EXPECT_EQ(WaitFor(Spawn([&] {
              if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) {
                return 90;
              }
              const absl::Status status =
                  RunningTier::Start(TestOptions(directory.path())).status();
              if (!absl::IsPermissionDenied(status)) return Explain(91, status);
              return status.message().find("must belong to") == absl::string_view::npos ? 92 : 0;
            })),
            0);
}

TEST(NvmeProcess, TheOwnersPidIsNamedAndAKilledOwnerHoldsNothing) {
  TestDirectory directory;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t owner = Spawn([&] {
    auto running = RunningTier::Start(TestOptions(directory.path()));
    const char byte = running.ok() ? '1' : '0';
    (void)!write(ready[1], &byte, 1);
    pause();
    return 0;
  });
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, '1');
  EXPECT_EQ(
      WaitFor(Spawn([&] {
        const absl::Status status = RunningTier::Start(TestOptions(directory.path())).status();
        const std::string want = "in use by process " + std::to_string(owner) + ";";
        return status.message().find(want) == absl::string_view::npos ? Explain(1, status) : 0;
      })),
      0);
  kill(owner, SIGKILL);
  WaitFor(owner);
  EXPECT_EQ(WaitFor(Spawn([&] { return UseTier(TestOptions(directory.path()), false); })), 0);
}

// In a mount namespace of its own, with a tmpfs of `mebibytes` at `path`.
int WithSmallDisk(const std::string& path, int mebibytes, const std::function<int()>& body) {
  return WaitFor(Spawn([&] {
    if (unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return kSkipped;
    }
    const std::string size = "mode=0700,size=" + std::to_string(mebibytes) + "m";
    if (mount("tmpfs", path.c_str(), "tmpfs", 0, size.c_str()) != 0) return kSkipped;
    return body();
  }));
}

TEST(NvmeProcess, ADiskThatIsTooSmallIsRefusedWithNumbers) {
  TestDirectory directory;
  const int code = WithSmallDisk(directory.path(), 16, [&] {
    const absl::Status status = RunningTier::Start(TestOptions(directory.path())).status();
    if (!absl::IsResourceExhausted(status)) return Explain(1, status);
    return status.message().find("are free; lower the capacity") == absl::string_view::npos
               ? Explain(2, status)
               : 0;
  });
  if (code == kSkipped) GTEST_SKIP() << "needs the right to mount a tmpfs";
  EXPECT_EQ(code, 0);
}

// Somebody else fills the disk while we run: the index cannot grow. Reads go on, writes stop, and
// come back by themselves.
TEST(NvmeProcess, ADiskThatFillsUpMakesTheTierReadOnlyUntilThereIsSpace) {
  TestDirectory directory;
  const int code = WithSmallDisk(directory.path(), 64, [&] {
    auto running = RunningTier::Start(TestOptions(directory.path()));
    if (!running.ok()) return Explain(1, running.status());
    TestPage kept(1, kTestShape);
    auto page = (*running)->Store(kept);
    if (!page.ok()) return Explain(2, page.status());
    const std::string hog_path = directory.file("hog");
    const int hog = open(hog_path.c_str(), O_RDWR | O_CREAT, 0600);
    std::vector<char> block(4096, 1);
    while (write(hog, block.data(), block.size()) > 0) {
    }
    close(hog);
    absl::Status status;
    for (uint32_t i = 2; i < 20000 && status.ok(); ++i) {
      auto next = (*running)->Store(TestPage(i, kTestShape));
      status = next.status();
      if (next.ok()) (*running)->Release(*next);
    }
    if (!absl::IsUnavailable(status)) return Explain(3, status);
    for (int i = 0; i < 2000 && (*running)->state() == TierState::kServing; ++i) usleep(1000);
    if ((*running)->state() != TierState::kReadOnly) return 4;
    if ((*running)->degraded().find("read-only") == std::string::npos) return 5;
    if (!absl::IsUnavailable((*running)->Reserve().status())) return 6;
    status = (*running)->Check(*page, kept);
    if (!status.ok()) return Explain(7, status);
    unlink(hog_path.c_str());
    for (int i = 0; i < 15000 && (*running)->state() != TierState::kServing; ++i) usleep(1000);
    if ((*running)->state() != TierState::kServing) return 8;
    if (!(*running)->degraded().empty()) return 9;
    auto again = (*running)->Store(TestPage(300, kTestShape));
    if (!again.ok()) return Explain(10, again.status());
    running->reset();
    auto restarted = RunningTier::Start(TestOptions(directory.path()));
    if (!restarted.ok()) return Explain(11, restarted.status());
    return (*restarted)->Recover().pages.size() == 2 ? 0 : 12;
  });
  if (code == kSkipped) GTEST_SKIP() << "needs the right to mount a tmpfs";
  EXPECT_EQ(code, 0);
}

// What the parent knows of each page when a writer dies. In shared memory.
enum PageState : uint8_t { kAbsent, kWriting, kStored, kReleasing };
constexpr uint32_t kNumPages = 256;
constexpr uint32_t kNumWriters = 8;
struct Shared {
  std::atomic<uint8_t> states[kNumPages];
  std::atomic<uint64_t> stores;
  std::atomic<uint64_t> recovered;
  std::atomic<uint64_t> misses;  // recovered pages that did not verify: slots in use when killed
};

// Recovers, checks everything against `shared`, then stores and releases until it is killed.
int StoreUntilKilled(const NvmeOptions& options, Shared& shared, uint32_t seed, int ready) {
  auto running = RunningTier::Start(options);
  if (!running.ok()) return Explain(1, running.status());
  std::vector<std::optional<PageId>> places(kNumPages);
  for (const RecoveredPage& page : (*running)->Recover().pages) {
    const uint32_t number = page.identity.block_index;
    const absl::Status status = (*running)->Check(page.page, TestPage(number, kTestShape));
    if (absl::IsInternal(status)) return Explain(2, status);  // wrong bytes
    const uint8_t state = shared.states[number];
    if (!status.ok()) {
      if (!absl::IsDataLoss(status) || state == kStored) return Explain(3, status);
      ++shared.misses;
      (*running)->Release(page.page);
      continue;
    }
    if (state == kAbsent) return Explain(4, absl::InternalError("a released page came back"));
    if (places[number]) return Explain(5, absl::InternalError("recovered twice"));
    places[number] = page.page;
    ++shared.recovered;
  }
  for (uint32_t i = 0; i < kNumPages; ++i) {
    if (shared.states[i] == kStored && !places[i]) {
      return Explain(6, absl::InternalError("a stored page is missing"));
    }
    shared.states[i] = places[i] ? kStored : kAbsent;
  }
  const char byte = '1';
  (void)!write(ready, &byte, 1);
  std::vector<std::thread> writers;
  for (uint32_t writer = 0; writer < kNumWriters; ++writer) {
    writers.emplace_back([&, writer] {
      std::mt19937 random(seed * 100 + writer);
      for (;;) {
        const uint32_t number = random() % (kNumPages / kNumWriters) * kNumWriters + writer;
        if (places[number]) {
          shared.states[number] = kReleasing;
          (*running)->Release(*places[number]);
          places[number].reset();
          // Until the deletion is in the log it may come back; only the writer's own later
          // stores show that it is.
          continue;
        }
        shared.states[number] = kWriting;
        auto page = (*running)->Store(TestPage(number, kTestShape));
        if (!page.ok()) _exit(Explain(7, page.status()));
        places[number] = *page;
        shared.states[number] = kStored;
        ++shared.stores;
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  return 0;
}

TEST(NvmeProcess, KilledAtRandomPointsEveryStoredPageIsFoundAndVerifies) {
  constexpr int kKills = 24;
  TestDirectory directory;
  NvmeOptions options = TestOptions(directory.path());
  auto* shared =
      new (mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Shared{};
  int ready[2];
  ASSERT_EQ(pipe2(ready, O_CLOEXEC | O_NONBLOCK), 0);
  std::mt19937 random(20);
  for (int kill_number = 0; kill_number <= kKills; ++kill_number) {
    options.backend = kill_number % 3 == 2 ? BackendKind::kThreads : BackendKind::kIoUring;
    const pid_t child = Spawn([&] {
      return StoreUntilKilled(options, *shared, static_cast<uint32_t>(kill_number), ready[1]);
    });
    char byte = 0;
    for (int i = 0; i < 20000 && read(ready[0], &byte, 1) != 1; ++i) {
      if (waitpid(child, nullptr, WNOHANG | WNOWAIT) != 0) break;
      usleep(1000);
    }
    usleep(random() % 400000);
    kill(child, SIGKILL);
    ASSERT_EQ(WaitFor(child), -SIGKILL) << "kill " << kill_number;
  }
  std::printf(
      "%d kills, %llu stores, %llu pages recovered and equal, %llu misses of slots in use\n",
      kKills, static_cast<unsigned long long>(shared->stores),
      static_cast<unsigned long long>(shared->recovered),
      static_cast<unsigned long long>(shared->misses));
  EXPECT_GT(shared->stores, 1000u);
  EXPECT_GT(shared->recovered, 500u);
  // At most what the writers had in hand at each kill.
  EXPECT_LE(shared->misses, uint64_t{kKills} * kNumWriters);
}

}  // namespace
}  // namespace kvstore::tiers
