// Two tenants replay a real trace while the disk, the daemon and clients fail, again and again.
// Afterwards: no wrong byte, no call past its deadline, no crash, nothing leaked.
//
// KVSTORE_SOAK_SECONDS: how long (default 45). KVSTORE_TEST_SEED: which faults and when.
// KVSTORE_TRACE: another trace.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <random>

#include "tests/integration/daemon_process.h"
#include "tests/soak/trace_load.h"
#include "tests/support/fault_fs/fault_fs_mount.h"

namespace kvstore::testing {
namespace {

constexpr int kClientsPerTenant = 2;
constexpr const char* kTenants[] = {"alpha", "beta"};

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

class MixedRun : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = FaultFsMount::Create();
    if (disk_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    const char* path = std::getenv("KVSTORE_TRACE");
    trace_ = ReadTrace(path != nullptr ? path : KVSTORE_SOAK_TRACE);
    ASSERT_FALSE(trace_.empty());
    options_.sets = {"tier.dram.bytes=64MiB",  "tier.gpu.device=host",
                     "tier.gpu.bytes=16MiB",   "tier.nvme.dirs=[\"" + disk_->path() + "/nvme\"]",
                     "tier.nvme.bytes=256MiB", "limits.move_deadline=1s",
                     "limits.lease_time=5s"};
    daemon_.Start(options_);
  }

  void DiskFault(const std::string& command) {
    disk_->Set("only pages");
    disk_->Set(command);
    absl::SleepFor(absl::Milliseconds(300 + random_() % 1500));
    disk_->Set("clear");
  }
  void KillDaemon() {
    daemon_.KillHard();
    disk_->Set("clear");
    daemon_.Start(options_);
    ++kills_;
  }
  void FreezeDaemon() {
    daemon_.Signal(SIGSTOP);
    absl::SleepFor(absl::Milliseconds(100 + random_() % 1500));
    daemon_.Signal(SIGCONT);
  }
  // A client that dies while it holds a lease or a reservation.
  void KillClient(const char* state) {
    std::string program = CrashClient(), target = daemon_.target(), what = state;
    char* argv[] = {program.data(), target.data(), what.data(), nullptr};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid = 0;
    ASSERT_EQ(posix_spawn(&pid, program.c_str(), &files, nullptr, argv, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    absl::SleepFor(absl::Milliseconds(300));
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  static std::string CrashClient() {
    return std::string(std::getenv("KVSTORE_BIN_DIR")) + "/../tests/crash_client";
  }
  void OneFault() {
    const std::vector<std::function<void()>> faults = {
        [this] { DiskFault("read_error 3"); },
        [this] { DiskFault("read_flip 2"); },
        [this] { DiskFault("read_short 3"); },
        [this] { DiskFault("read_elsewhere 2"); },
        [this] { DiskFault("write_error 2 5"); },   // EIO
        [this] { DiskFault("write_error 1 28"); },  // ENOSPC
        [this] { DiskFault("stall 400"); },
        [this] { DiskFault("stall 5000"); },
        [this] { KillDaemon(); },
        [this] { FreezeDaemon(); },
        [this] { KillClient("reserved"); },
        [this] { KillClient("filled"); },
        [this] { KillClient("paused"); },
    };
    faults[random_() % faults.size()]();
    ++faults_;
  }
  bool HasNothingLeft() {
    const v1::StatusResponse status = daemon_.Status();
    return status.sessions() == 0 && status.leases() == 0 && status.reservations() == 0;
  }

  const uint64_t seed_ = FromEnvironment("KVSTORE_TEST_SEED", std::random_device{}());
  std::mt19937_64 random_{seed_};
  std::unique_ptr<FaultFsMount> disk_;
  Trace trace_;
  DaemonOptions options_;
  DaemonProcess daemon_;
  uint64_t faults_ = 0, kills_ = 0;
};

TEST_F(MixedRun, TwoTenantsAndEveryFaultLeaveNoWrongByteAndNothingBehind) {
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed_));
  const uint64_t files_before = daemon_.OpenFiles();
  const absl::Time end = absl::Now() + absl::Seconds(FromEnvironment("KVSTORE_SOAK_SECONDS", 45));
  LoadCounts sum;
  {
    std::vector<std::unique_ptr<TraceLoad>> loads;
    for (const char* tenant : kTenants) {
      for (int i = 0; i < kClientsPerTenant; ++i) {
        loads.push_back(std::make_unique<TraceLoad>(
            TraceLoad::Options{.target = daemon_.target(), .tenant = tenant, .seed = random_()},
            trace_));
      }
    }
    while (absl::Now() < end && !HasFailure()) {
      absl::SleepFor(absl::Milliseconds(200 + random_() % 1000));
      OneFault();
    }
    for (const auto& load : loads) load->Stop();
    for (const auto& load : loads) {
      const LoadCounts counts = load->counts();
      EXPECT_GT(counts.checked_pages, 50u) << "the load was too light to show anything";
      sum.requests += counts.requests;
      sum.checked_pages += counts.checked_pages;
      sum.stored_blocks += counts.stored_blocks;
      sum.failed_calls += counts.failed_calls;
      sum.wrong_pages += counts.wrong_pages;
      sum.overruns += counts.overruns;
    }
  }
  std::printf(
      "%llu faults (%llu kills), %llu requests, %llu pages checked, %llu blocks stored, "
      "%llu calls failed, %llu wrong pages, %llu overruns\n",
      static_cast<unsigned long long>(faults_), static_cast<unsigned long long>(kills_),
      static_cast<unsigned long long>(sum.requests),
      static_cast<unsigned long long>(sum.checked_pages),
      static_cast<unsigned long long>(sum.stored_blocks),
      static_cast<unsigned long long>(sum.failed_calls),
      static_cast<unsigned long long>(sum.wrong_pages),
      static_cast<unsigned long long>(sum.overruns));
  EXPECT_EQ(sum.wrong_pages, 0u);
  EXPECT_EQ(sum.overruns, 0u);
  EXPECT_EQ(daemon_.WaitExit(absl::ZeroDuration()), -1) << "it ended by itself\n" << daemon_.Log();
  EXPECT_TRUE(Eventually(absl::Seconds(10), [&] { return HasNothingLeft(); }))
      << daemon_.Status().DebugString();
  // The extents, the index, listeners: what it had at first, and some room for RocksDB's files.
  EXPECT_TRUE(
      Eventually(absl::Seconds(10), [&] { return daemon_.OpenFiles() < files_before + 32; }))
      << daemon_.OpenFiles() << " open files, " << files_before << " at first";
  daemon_.Signal(SIGTERM);
  EXPECT_EQ(daemon_.WaitExit(absl::Seconds(12)), 0) << daemon_.Log();
}

}  // namespace
}  // namespace kvstore::testing
