// The GPU tier and other processes on a device: a client that traps, one that lingers, a context of
// ours that dies, and a million blocks. Skipped, visibly, where there is no CUDA device.
//
//   cuda_process_test [--blocks=N]     N: of the long run; default 1000000
//
// The program starts itself again for each client: CUDA does not survive a fork.
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_test_kernels.h"
#include "tests/tiers/sealed_page.h"
#include "tiers/gpu/gpu_tier.h"
#include "transfer/cuda/copy_engine.h"
#include "transfer/cuda/device_memory.h"
#include "transfer/cuda/loaded_driver.h"

extern char** environ;

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{2} << 20;
constexpr PageShape kShape{4, 65536};
constexpr PoolId kPool{1}, kOtherTenant{2};
enum ChildCode { kChildOk = 0, kChildFailed = 1, kChildDiffers = 2, kChildTrapped = 42 };

uint64_t blocks_of_long_run = 1'000'000;

// --- A client process: imports a slab and says what it holds.

struct Import {
  std::shared_ptr<transfer::CudaContext> context;
  std::unique_ptr<transfer::DeviceMemory> memory;
};

absl::StatusOr<Import> ImportSlab(int fd) {
  absl::StatusOr<std::unique_ptr<transfer::CudaDriver>> driver = transfer::LoadCudaDriver();
  if (!driver.ok()) return driver.status();
  auto context = transfer::CudaContext::Open(*std::move(driver), 0);
  if (!context.ok()) return context.status();
  auto memory = transfer::DeviceMemory::Import(*context, UniqueFd(fd), kSlab,
                                               transfer::DeviceAccess::kReadOnly);
  if (!memory.ok()) return memory.status();
  return Import{*context, *std::move(memory)};
}

std::vector<std::byte> ContentOf(const Import& import) {
  std::vector<std::byte> bytes(kSlab, std::byte{0xEE});
  if (cudaMemcpy(bytes.data(), reinterpret_cast<void*>(import.memory->data()), kSlab,
                 cudaMemcpyDeviceToHost) != cudaSuccess) {
    bytes.clear();
  }
  return bytes;
}

// The first slot of the slab holds the page of that number.
bool HoldsPage(const std::vector<std::byte>& slab, uint32_t number) {
  const SealedPage page(number, kShape);
  return slab.size() == kSlab && std::memcmp(slab.data(), page.data(), kShape.page_bytes()) == 0;
}

int RunClient(const std::string& what, int fd) {
  const absl::StatusOr<Import> import = ImportSlab(fd);
  if (!import.ok()) {
    std::fprintf(stderr, "client: %s\n", import.status().ToString().c_str());
    return kChildFailed;
  }
  const std::vector<std::byte> slab = ContentOf(*import);
  if (what == "zero") {
    const bool is_zero = slab == std::vector<std::byte>(kSlab, std::byte{0});
    return is_zero ? kChildOk : kChildDiffers;
  }
  if (!HoldsPage(slab, 1)) return kChildDiffers;
  if (what == "trap") {
    (void)kvstore::tests::LaunchTrap(nullptr);
    return cudaDeviceSynchronize() == cudaSuccess ? kChildFailed : kChildTrapped;
  }
  // "linger": says that it has the slab, and looks again when it is told to.
  std::puts("mapped");
  std::fflush(stdout);
  if (std::getchar() == EOF) return kChildFailed;
  return HoldsPage(ContentOf(*import), 1) ? kChildOk : kChildDiffers;
}

// --- The tier

class CudaProcess : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = OpenDevice("cuda:0").status();
    if (!status.ok()) GTEST_SKIP() << status;
    Open(2 * kSlab, 8);
  }
  void Open(uint64_t bytes, size_t inflight_max) {
    core_.RunAndWait([&] {
      auto tier = GpuTier::Create(
          {.device = "cuda:0", .bytes = bytes, .slab_bytes = kSlab, .inflight_max = inflight_max},
          core_, clock_);
      ASSERT_TRUE(tier.ok()) << tier.status();
      tier_ = *std::move(tier);
      ASSERT_TRUE(tier_->OpenPool(kPool, {"a", kShape.slot_bytes()}).ok());
      ASSERT_TRUE(tier_->OpenPool(kOtherTenant, {"b", kShape.slot_bytes()}).ok());
    });
  }
  void TearDown() override {
    core_.RunAndWait([&] {
      if (tier_ != nullptr) tier_->Stop();
      tier_.reset();
    });
  }
  absl::Status Run(const std::function<void(Tier::Done)>& start) {
    absl::Notification ended;
    absl::Status result;
    core_.RunAndWait([&] {
      start([&](absl::Status status) {
        result = std::move(status);
        ended.Notify();
      });
    });
    EXPECT_TRUE(ended.WaitForNotificationWithTimeout(absl::Seconds(20))) << "never reported";
    return result;
  }
  absl::Status Write(PageId page, const SealedPage& source) {
    return Run([&](Tier::Done done) {
      tier_->Write(page, source.identity(), source.region(), absl::InfiniteFuture(),
                   std::move(done));
    });
  }
  absl::Status Read(PageId page, const SealedPage& source, const SealedPage& out) {
    return Run([&](Tier::Done done) {
      tier_->Read(page, source.identity(), out.region(), absl::InfiniteFuture(), std::move(done));
    });
  }
  PageId Reserve(PoolId pool) {
    absl::StatusOr<PageId> page;
    core_.RunAndWait([&] { page = tier_->Reserve(pool); });
    EXPECT_TRUE(page.ok()) << page.status();
    return page.value_or(PageId{});
  }
  UniqueFd ExportOf(PageId page, const char* tenant) {
    absl::StatusOr<SlabExport> exported = tier_->Export(page.slab, tenant, MemoryAccess::kReadOnly);
    EXPECT_TRUE(exported.ok()) << exported.status();
    return exported.ok() ? std::move(exported->slab) : UniqueFd();
  }

  // A client with `slab` as its descriptor 3.
  struct Client {
    pid_t pid = -1;
    FILE* out = nullptr;
    UniqueFd in;
    int Wait() {
      int status = 0;
      waitpid(pid, &status, 0);
      if (out != nullptr) std::fclose(out);
      return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
  };
  static Client Start(const char* what, const UniqueFd& slab) {
    int to[2], from[2];
    EXPECT_EQ(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    posix_spawn_file_actions_adddup2(&actions, slab.get(), 3);
    std::string program = "/proc/self/exe", argument = std::string("--client=") + what;
    char* arguments[] = {program.data(), argument.data(), nullptr};
    Client client;
    EXPECT_EQ(posix_spawn(&client.pid, program.c_str(), &actions, nullptr, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    client.in.Reset(to[1]);
    client.out = fdopen(from[0], "r");
    return client;
  }

  MonotonicClock clock_;
  EventLoop core_{"core", 1000, clock_};
  std::unique_ptr<GpuTier> tier_;
};

// R16: what dies is the client's context, never ours.
TEST_F(CudaProcess, AClientThatTrapsHarmsNeitherPoolNorTier) {
  const SealedPage source(1, kShape), out(kShape);
  const PageId page = Reserve(kPool);
  ASSERT_EQ(page.slot, 0u);
  ASSERT_TRUE(Write(page, source).ok());
  const UniqueFd slab = ExportOf(page, "a");
  struct stat file = {};
  ASSERT_EQ(fstat(slab.get(), &file), 0);
  EXPECT_FALSE(S_ISREG(file.st_mode)) << "clients tell device memory from a memfd by this";
  EXPECT_EQ(Start("trap", slab).Wait(), kChildTrapped);
  absl::SleepFor(absl::Milliseconds(1200));
  core_.RunAndWait([&] { EXPECT_EQ(tier_->state(), TierState::kServing) << tier_->degraded(); });
  ASSERT_TRUE(Read(page, source, out).ok());
  EXPECT_TRUE(out.HasPageOf(source));
  EXPECT_EQ(Start("trap", slab).Wait(), kChildTrapped) << "and again";
}

// S13: memory that another process maps is not handed on; what is handed on is zero.
TEST_F(CudaProcess, AnImporterThatLingersKeepsItsMemoryAndTheNextTenantGetsOther) {
  const SealedPage source(1, kShape), other(2, kShape), out(kShape);
  std::vector<PageId> pages;
  for (;;) {
    absl::StatusOr<PageId> page;
    core_.RunAndWait([&] { page = tier_->Reserve(kPool); });
    if (!page.ok()) break;
    pages.push_back(*page);
    ASSERT_TRUE(Write(*page, source).ok());
  }
  ASSERT_FALSE(pages.empty());
  ASSERT_EQ(pages[0].slot, 0u);
  Client lingering = Start("linger", ExportOf(pages[0], "a"));
  char line[64] = {};
  ASSERT_NE(std::fgets(line, sizeof line, lingering.out), nullptr);
  for (const PageId& page : pages) {
    if (page.slab != pages[0].slab) continue;
    core_.RunAndWait([&] { tier_->Release(page); });
  }
  const PageId theirs = Reserve(kOtherTenant);
  EXPECT_NE(theirs.slab, pages[0].slab);
  EXPECT_FALSE(tier_->Export(pages[0].slab, "a", MemoryAccess::kReadOnly).ok());
  EXPECT_FALSE(tier_->Export(theirs.slab, "a", MemoryAccess::kReadOnly).ok()) << "another tenant's";
  EXPECT_EQ(Start("zero", ExportOf(theirs, "b")).Wait(), kChildOk);
  ASSERT_TRUE(Write(theirs, other).ok());
  ASSERT_EQ(write(lingering.in.get(), "\n", 1), 1);
  EXPECT_EQ(lingering.Wait(), kChildOk) << "the lingering client saw other bytes";
  ASSERT_TRUE(Read(theirs, other, out).ok());
  EXPECT_TRUE(out.HasPageOf(other));
}

TEST_F(CudaProcess, AnImporterThatIsKilledLeavesEverythingInPlace) {
  const SealedPage source(1, kShape), out(kShape);
  const PageId page = Reserve(kPool);
  ASSERT_TRUE(Write(page, source).ok());
  Client client = Start("linger", ExportOf(page, "a"));
  char line[64] = {};
  ASSERT_NE(std::fgets(line, sizeof line, client.out), nullptr);
  ASSERT_EQ(kill(client.pid, SIGKILL), 0);
  EXPECT_EQ(client.Wait(), 1000 + SIGKILL);
  ASSERT_TRUE(Read(page, source, out).ok());
  EXPECT_TRUE(out.HasPageOf(source));
}

// R15 on a device: both directions at once, distinct pages, poisoned destinations.
TEST_F(CudaProcess, ManyBlocksComeBackBitByBit) {
  constexpr PageShape kSmall{2, 4096};
  constexpr size_t kSlots = 4096, kBatch = 128;
  TearDown();
  Open(64 * kSlab, kBatch);
  std::vector<PageId> pages;
  core_.RunAndWait([&] {
    ASSERT_TRUE(tier_->OpenPool(PoolId{3}, {"a", kSmall.slot_bytes()}).ok());
    for (size_t i = 0; i < kSlots; ++i) pages.push_back(*tier_->Reserve(PoolId{3}));
  });
  std::mt19937 random(7);
  uint64_t wrong = 0, failed = 0, moved = 0;
  std::vector<std::pair<PageId, std::unique_ptr<SealedPage>>> before;  // written last time
  for (uint32_t number = 0; moved < blocks_of_long_run;) {
    std::vector<std::pair<PageId, std::unique_ptr<SealedPage>>> now;
    std::vector<std::unique_ptr<SealedPage>> outs;
    // Disjoint from those that are read meanwhile: they were the window before.
    for (size_t i = 0; i < kBatch / 2; ++i, ++number) {
      now.emplace_back(pages[number % kSlots], std::make_unique<SealedPage>(number, kSmall));
    }
    std::shuffle(now.begin(), now.end(), random);
    for (size_t i = 0; i < before.size(); ++i) outs.push_back(std::make_unique<SealedPage>(kSmall));
    absl::BlockingCounter left(static_cast<int>(now.size() + before.size()));
    absl::Mutex mutex;
    core_.RunAndWait([&] {
      const auto done = [&](absl::Status status) {
        {
          absl::MutexLock lock(&mutex);
          failed += !status.ok();
        }
        left.DecrementCount();
      };
      for (size_t i = 0; i < std::max(now.size(), before.size()); ++i) {
        if (i < now.size()) {
          tier_->Write(now[i].first, now[i].second->identity(), now[i].second->region(),
                       absl::InfiniteFuture(), done);
        }
        if (i < before.size()) {
          tier_->Read(before[i].first, before[i].second->identity(), outs[i]->region(),
                      absl::InfiniteFuture(), done);
        }
      }
    });
    left.Wait();
    for (size_t i = 0; i < before.size(); ++i) wrong += !outs[i]->HasPageOf(*before[i].second);
    moved += before.size();
    before = std::move(now);
    ASSERT_EQ(wrong, 0u) << "of " << moved;
    ASSERT_EQ(failed, 0u) << "of " << moved;
  }
  std::printf("%lu blocks bit-exact\n", static_cast<unsigned long>(moved));
}

// R16: our own context dies. Last: the primary context of this process does not come back.
TEST_F(CudaProcess, ZZZATrapInOurOwnContextFailsTheTierWithinASecond) {
  const SealedPage source(1, kShape), out(kShape);
  const PageId page = Reserve(kPool);
  ASSERT_TRUE(Write(page, source).ok());
  absl::Notification lost;
  core_.RunAndWait([&] { tier_->set_on_lost([&lost] { lost.Notify(); }); });
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ASSERT_EQ(kvstore::tests::LaunchTrap(nullptr), cudaSuccess);
  ASSERT_TRUE(lost.WaitForNotificationWithTimeout(absl::Seconds(1)));
  core_.RunAndWait([&] { EXPECT_EQ(tier_->state(), TierState::kFailed); });
  EXPECT_TRUE(absl::IsUnavailable(Read(page, source, out)));
  EXPECT_TRUE(absl::IsUnavailable(Write(page, source)));
}

}  // namespace
}  // namespace kvstore::tiers

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with("--client=")) {
      return kvstore::tiers::RunClient(std::string(argument.substr(9)), 3);
    }
    if (argument.starts_with("--blocks=")) {
      kvstore::tiers::blocks_of_long_run = std::strtoull(argv[i] + 9, nullptr, 10);
    }
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
