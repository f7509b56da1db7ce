// What a process that was handed a slab can do to it, tried by real processes. Each attack runs in
// a forked child that keeps nothing of the daemon's but the two descriptors that a session
// receives; as another user where we may change users (root), and as the daemon's own.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tests/tiers/sealed_page.h"
#include "tiers/dram/dram_tier.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr uint64_t kTableBytes = kSlab / 4096 * 8;
constexpr PageShape kShape{3, 40000};
constexpr PoolId kTenantA{1}, kTenantB{2};
constexpr uid_t kNobody = 65534;
constexpr int kSlabFd = 100, kTableFd = 101;
constexpr size_t kResultsMax = 16;

enum class User { kOther, kSame };

// What the child found, in memory that both see. Zero: not reached.
struct Findings {
  std::atomic<int> step;  // child and parent take turns on it
  std::atomic<int> results[kResultsMax];
};

void AwaitStep(const Findings& findings, int step) {
  while (findings.step.load() < step) std::this_thread::yield();
}

// errno of a call that failed, 1000 when it went through.
constexpr int kWentThrough = 1000;
int ErrnoOf(long result) { return result == -1 ? errno : kWentThrough; }
int ErrnoOfMap(void* mapped) { return mapped == MAP_FAILED ? errno : kWentThrough; }
std::string ProcPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

class SharedMemoryAttack : public testing::Test {
 protected:
  SharedMemoryAttack() {
    findings_ = static_cast<Findings*>(
        mmap(nullptr, sizeof(Findings), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    OnCore([this] {
      tier_ = *DramTier::Create({.bytes = kSlab, .slab_bytes = kSlab}, core_, clock_);
      ASSERT_TRUE(tier_->OpenPool(kTenantA, {"tenant-a", kShape.slot_bytes()}).ok());
      ASSERT_TRUE(tier_->OpenPool(kTenantB, {"tenant-b", kShape.slot_bytes()}).ok());
      page_ = *tier_->Reserve(kTenantA);
      slot_ = tier_->Address(page_)->data;
      // Slot 0: the client's mapping starts with this page.
      ASSERT_EQ(page_.slot, 0u);
      ASSERT_TRUE(transfer::CopySlot(slot_, source_.data(), source_.identity()).ok());
    });
  }
  ~SharedMemoryAttack() override {
    OnCore([this] { tier_->Stop(); });
    munmap(findings_, sizeof(Findings));
  }
  void OnCore(Task task) { core_.RunAndWait(std::move(task)); }

  // Runs `attack` in a child that holds the exported slab as kSlabFd and the table as kTableFd.
  pid_t Start(MemoryAccess access, User user, const std::function<void(Findings&)>& attack) {
    absl::StatusOr<SlabExport> exported = tier_->Export(page_.slab, "tenant-a", access);
    EXPECT_TRUE(exported.ok()) << exported.status();
    const pid_t child = fork();
    if (child != 0) return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (dup2(exported->slab.get(), kSlabFd) < 0 || dup2(exported->generations.get(), kTableFd) < 0)
      _exit(101);
    if (close_range(3, kSlabFd - 1, 0) != 0 || close_range(kTableFd + 1, ~0U, 0) != 0) _exit(102);
    if (user == User::kOther && (setgid(kNobody) != 0 || setuid(kNobody) != 0)) _exit(103);
    attack(*findings_);
    _exit(0);
  }
  void Finish(pid_t child) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
    ASSERT_EQ(WEXITSTATUS(status), 0);
  }
  void Run(MemoryAccess access, User user, const std::function<void(Findings&)>& attack) {
    Finish(Start(access, user, attack));
  }
  int Result(size_t i) const { return findings_->results[i].load(); }
  absl::Status ReadPage() {
    absl::Status result;
    absl::Notification done;
    SealedPage out(kShape);
    OnCore([&] {
      tier_->Read(page_, source_.identity(), out.region(), absl::InfiniteFuture(),
                  [&](absl::Status status) {
                    result = std::move(status);
                    done.Notify();
                  });
    });
    done.WaitForNotification();
    return result;
  }
  static bool MayChangeUser() { return geteuid() == 0; }

  MonotonicClock clock_;
  EventLoop core_{"core", 100, clock_};
  const SealedPage source_{1, kShape};
  Findings* findings_;
  std::unique_ptr<DramTier> tier_;
  PageId page_;
  std::byte* slot_ = nullptr;
};

TEST_F(SharedMemoryAttack, ReadOnlySessionOfAnotherUserGetsNothingThatWrites) {
  if (!MayChangeUser()) GTEST_SKIP() << "needs root, to become another user";
  Run(MemoryAccess::kReadOnly, User::kOther, [](Findings& found) {
    auto& r = found.results;
    void* map = mmap(nullptr, kSlab, PROT_READ, MAP_SHARED, kSlabFd, 0);
    r[0] = ErrnoOfMap(map);
    r[1] = ErrnoOfMap(mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, kSlabFd, 0));
    r[2] = ErrnoOf(mprotect(map, kSlab, PROT_READ | PROT_WRITE));
    r[3] = ErrnoOf(pwrite(kSlabFd, "x", 1, 0));
    r[4] = ErrnoOf(ftruncate(kSlabFd, 0));
    r[5] = ErrnoOf(fallocate(kSlabFd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSlab));
    r[6] = ErrnoOf(fchmod(kSlabFd, 0666));
    r[7] = ErrnoOf(open(ProcPath(kSlabFd).c_str(), O_RDWR));
    r[8] = ErrnoOf(open(ProcPath(kSlabFd).c_str(), O_RDONLY));
    r[9] = ErrnoOf(fcntl(kSlabFd, F_ADD_SEALS, F_SEAL_WRITE));
    r[10] = ErrnoOf(open(("/proc/" + std::to_string(getppid()) + "/mem").c_str(), O_RDWR));
    char byte = 'x';
    const iovec local = {&byte, 1}, remote = {map, 1};
    r[11] = ErrnoOf(process_vm_writev(getppid(), &local, 1, &remote, 1, 0));
  });
  EXPECT_EQ(Result(0), kWentThrough) << "reading is what it was given";
  EXPECT_EQ(Result(1), EACCES);
  EXPECT_EQ(Result(2), EACCES);
  EXPECT_EQ(Result(3), EBADF);
  EXPECT_EQ(Result(4), EINVAL);  // not open for writing
  EXPECT_EQ(Result(5), EBADF);
  EXPECT_EQ(Result(6), EPERM);
  EXPECT_EQ(Result(7), EACCES) << "reopening a read-only descriptor for writing";
  EXPECT_EQ(Result(8), EACCES);
  EXPECT_EQ(Result(9), EPERM);
  EXPECT_EQ(Result(10), EACCES);
  EXPECT_EQ(Result(11), EPERM);
  EXPECT_TRUE(transfer::VerifySlot(slot_, source_.identity()).ok());
}

// The known limit: an owner may chmod its memfd. README of tiers/dram.
TEST_F(SharedMemoryAttack, ReadOnlySessionOfTheSameUserCanGainWritingButOnlyCausesMisses) {
  Run(MemoryAccess::kReadOnly, User::kSame, [](Findings& found) {
    auto& r = found.results;
    r[0] = ErrnoOfMap(mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, kSlabFd, 0));
    r[1] = ErrnoOf(pwrite(kSlabFd, "x", 1, 0));
    (void)fchmod(kSlabFd, 0600);
    const int reopened = open(ProcPath(kSlabFd).c_str(), O_RDWR);
    r[2] = ErrnoOf(reopened);
    r[3] = ErrnoOf(pwrite(reopened, "scribble", 8, 64));
    r[4] = ErrnoOf(ftruncate(reopened, 0));
  });
  EXPECT_EQ(Result(0), EACCES);
  EXPECT_EQ(Result(1), EBADF);
  EXPECT_EQ(Result(2), kWentThrough) << "if the kernel stops this, say so in the README";
  EXPECT_EQ(Result(3), kWentThrough);
  EXPECT_EQ(Result(4), EPERM) << "seals hold whoever opens it";
  EXPECT_TRUE(absl::IsDataLoss(ReadPage()));
}

TEST_F(SharedMemoryAttack, WritingSessionCannotResizeOrUnseal) {
  for (User user : {User::kSame, User::kOther}) {
    if (user == User::kOther && !MayChangeUser()) continue;
    Run(MemoryAccess::kReadWrite, user, [](Findings& found) {
      auto& r = found.results;
      r[0] = ErrnoOf(ftruncate(kSlabFd, 0));
      r[1] = ErrnoOf(ftruncate(kSlabFd, kSlab - 4096));
      r[2] = ErrnoOf(ftruncate(kSlabFd, 2 * kSlab));
      r[3] = ErrnoOf(pwrite(kSlabFd, "x", 1, kSlab));
      r[4] = ErrnoOf(fallocate(kSlabFd, 0, kSlab, 4096));
      r[5] = ErrnoOf(fcntl(kSlabFd, F_ADD_SEALS, F_SEAL_WRITE));
      r[6] = ErrnoOf(fcntl(kSlabFd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
    });
    for (size_t i = 0; i < 7; ++i) EXPECT_EQ(Result(i), EPERM) << "attack " << i;
    // Every byte is still there to touch, without SIGBUS.
    volatile const std::byte* memory = slot_;
    for (uint64_t at = 0; at < kSlab; at += 4096) (void)memory[at];
    EXPECT_TRUE(ReadPage().ok());
  }
}

TEST_F(SharedMemoryAttack, ScribblingIsCaughtByEveryReader) {
  Run(MemoryAccess::kReadWrite, User::kSame, [](Findings& found) {
    void* map = mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, kSlabFd, 0);
    found.results[0] = ErrnoOfMap(map);
    static_cast<char*>(map)[70000] ^= 1;
  });
  EXPECT_EQ(Result(0), kWentThrough);
  EXPECT_TRUE(absl::IsDataLoss(transfer::VerifySlot(slot_, source_.identity())));
  EXPECT_TRUE(absl::IsDataLoss(ReadPage()));
}

TEST_F(SharedMemoryAttack, AForgedPageWithChecksumsOfItsOwnIsCaught) {
  const PageIdentity identity = source_.identity();
  Run(MemoryAccess::kReadWrite, User::kSame, [identity](Findings&) {
    auto* map = static_cast<std::byte*>(
        mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, kSlabFd, 0));
    std::memset(map, 0x41, identity.shape.page_bytes());
    (void)transfer::SealSlot(map, identity);
  });
  EXPECT_TRUE(absl::IsDataLoss(ReadPage()));
}

TEST_F(SharedMemoryAttack, FreeingThePagesUnderTheDaemonIsAMissAndNoCrash) {
  Run(MemoryAccess::kReadWrite, User::kSame, [](Findings& found) {
    found.results[0] =
        ErrnoOf(fallocate(kSlabFd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSlab));
  });
  EXPECT_EQ(Result(0), kWentThrough);
  EXPECT_TRUE(absl::IsDataLoss(ReadPage()));
}

TEST_F(SharedMemoryAttack, NobodyWritesTheGenerationTable) {
  for (User user : {User::kSame, User::kOther}) {
    if (user == User::kOther && !MayChangeUser()) continue;
    Run(MemoryAccess::kReadWrite, user, [](Findings& found) {
      auto& r = found.results;
      void* map = mmap(nullptr, kTableBytes, PROT_READ, MAP_SHARED, kTableFd, 0);
      r[0] = ErrnoOfMap(map);
      r[1] =
          ErrnoOfMap(mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED, kTableFd, 0));
      r[2] = ErrnoOf(mprotect(map, kTableBytes, PROT_READ | PROT_WRITE));
      r[3] = ErrnoOf(pwrite(kTableFd, "x", 1, 0));
      r[4] = ErrnoOf(ftruncate(kTableFd, 0));
      // The same user gets as far as a descriptor for writing; the seal refuses everything behind
      // it.
      (void)fchmod(kTableFd, 0666);
      const int reopened = open(ProcPath(kTableFd).c_str(), O_RDWR);
      r[5] =
          ErrnoOfMap(mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED, reopened, 0));
      r[6] = ErrnoOf(pwrite(reopened, "x", 1, 0));
      r[7] = ErrnoOf(ftruncate(reopened, 0));
      r[8] =
          ErrnoOf(fallocate(reopened, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kTableBytes));
    });
    EXPECT_EQ(Result(0), kWentThrough);
    for (size_t i = 1; i < 9; ++i) {
      EXPECT_NE(Result(i), kWentThrough) << "attack " << i;
      EXPECT_NE(Result(i), 0) << "attack " << i << " did not run";
    }
    EXPECT_TRUE(ReadPage().ok());
  }
  const SlabExport exported = *tier_->Export(page_.slab, "tenant-a", MemoryAccess::kReadOnly);
  uint64_t generation = 0;
  ASSERT_EQ(pread(exported.generations.get(), &generation, 8, 0), 8);
  EXPECT_EQ(generation, page_.generation);
}

// The child keeps its mapping while the slab goes to another tenant, reads all of it, and writes
// all of it.
TEST_F(SharedMemoryAttack, AFormerTenantsMappingNeverShowsNorReachesTheNewTenantsBytes) {
  constexpr unsigned char kSecret = 0xB7;
  const pid_t child = Start(MemoryAccess::kReadWrite, User::kSame, [](Findings& found) {
    auto* map = static_cast<unsigned char*>(
        mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, kSlabFd, 0));
    if (map == MAP_FAILED) _exit(104);
    std::memset(map, 1, kSlab);
    found.step = 1;
    AwaitStep(found, 2);  // the slab changes hands and is filled with the secret
    int seen = 0, own = 0;
    for (uint64_t i = 0; i < kSlab; ++i) {
      seen += map[i] == kSecret ? 1 : 0;
      own += map[i] == 1 ? 1 : 0;
    }
    std::memset(map, 2, kSlab);
    found.results[0] = seen + 1;
    found.results[1] = own + 1;
  });
  AwaitStep(*findings_, 1);
  PageId fresh;
  MutableRegion memory;
  OnCore([&] {
    tier_->Release(page_);
    fresh = *tier_->Reserve(kTenantB);
    memory = *tier_->Address(fresh);
    for (size_t i = 0; i < memory.bytes; ++i) ASSERT_EQ(memory.data[i], std::byte{0});
    std::memset(memory.data, kSecret, memory.bytes);
  });
  tier_->WaitUntilPrepared();  // the old memory has been freed
  findings_->step = 2;
  Finish(child);
  EXPECT_EQ(Result(0), 1) << "bytes of the new tenant seen by the old one";
  EXPECT_EQ(Result(1), 1) << "bytes of the old tenant still held in memory";
  for (size_t i = 0; i < memory.bytes; ++i) ASSERT_EQ(memory.data[i], std::byte{kSecret});
  EXPECT_TRUE(
      absl::IsNotFound(tier_->Export(fresh.slab, "tenant-a", MemoryAccess::kReadOnly).status()));
}

// The generation protocol of GenerationTable, with a reader in another process: whatever it accepts
// is of the use that it was granted.
TEST_F(SharedMemoryAttack, AReaderNeverAcceptsBytesOfAnotherUseOfItsSlot) {
  const uint64_t generation = page_.generation;
  const pid_t child = Start(MemoryAccess::kReadOnly, User::kSame, [generation](Findings& found) {
    auto* map =
        static_cast<const unsigned char*>(mmap(nullptr, kSlab, PROT_READ, MAP_SHARED, kSlabFd, 0));
    auto* table =
        static_cast<uint64_t*>(mmap(nullptr, kTableBytes, PROT_READ, MAP_SHARED, kTableFd, 0));
    std::vector<unsigned char> first(65536), copy(65536);
    std::memcpy(first.data(), map, first.size());
    found.step = 1;
    int accepted = 0, wrong = 0;
    for (bool is_current = true; is_current;) {
      const std::atomic_ref<uint64_t> cell(table[0]);
      const uint64_t before = cell.load(std::memory_order_acquire);
      std::memcpy(copy.data(), map, copy.size());
      std::atomic_thread_fence(std::memory_order_acquire);
      is_current = before == generation && cell.load(std::memory_order_relaxed) == generation;
      if (!is_current) break;
      ++accepted;
      wrong += std::memcmp(copy.data(), first.data(), copy.size()) != 0 ? 1 : 0;
      found.results[2] = accepted;
    }
    found.results[0] = wrong + 1;
    found.results[1] = accepted;
  });
  AwaitStep(*findings_, 1);
  while (findings_->results[2].load() < 100) std::this_thread::yield();
  OnCore([&] {
    tier_->Release(page_);
    const PageId next = *tier_->Reserve(kTenantA);
    ASSERT_EQ(next.slot, page_.slot);
    const SealedPage other(2, kShape);
    ASSERT_TRUE(
        transfer::CopySlot(tier_->Address(next)->data, other.data(), other.identity()).ok());
  });
  Finish(child);
  EXPECT_EQ(Result(0), 1) << "copies accepted although the slot was in another use";
  EXPECT_GE(Result(1), 100);
}

}  // namespace
}  // namespace kvstore::tiers
