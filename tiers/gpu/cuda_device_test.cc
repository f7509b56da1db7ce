// The GPU tier over a CUDA driver without a device: whatever the driver does, and whatever call of
// it fails, nobody gets wrong bytes and the tier says what it is.
#include "tiers/gpu/cuda_device.h"

#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_cuda_driver.h"
#include "tests/tiers/sealed_page.h"
#include "tiers/gpu/gpu_tier.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;
using transfer::FakeCudaDevice;
using transfer::FakeFailure;

constexpr PageShape kShape{3, 40000};
constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr PoolId kPool{1};

class CudaTier : public testing::Test {
 protected:
  absl::Status Open(uint32_t seed = 1, uint64_t bytes = 2 * kSlab) {
    fake_ = std::make_shared<FakeCudaDevice>(seed);
    return OpenAgain(bytes);
  }
  // With `fake_` as it is.
  absl::Status OpenAgain(uint64_t bytes = 2 * kSlab) {
    absl::Status status;
    core_.RunAndWait([&] {
      auto device = CudaDevice::Open(transfer::MakeFakeCudaDriver(fake_), 0);
      if (!device.ok()) {
        status = device.status();
        return;
      }
      auto tier = GpuTier::CreateOn(*std::move(device),
                                    {.bytes = bytes, .slab_bytes = kSlab, .inflight_max = 8}, core_,
                                    clock_);
      status = tier.status();
      if (!tier.ok()) return;
      tier_ = *std::move(tier);
      EXPECT_TRUE(tier_->OpenPool(kPool, {"a", kShape.slot_bytes()}).ok());
    });
    return status;
  }
  void Close() {
    core_.RunAndWait([&] {
      if (tier_ != nullptr) tier_->Stop();
      tier_.reset();
    });
  }
  void TearDown() override {
    Close();
    if (fake_ != nullptr) {
      EXPECT_EQ(fake_->offences, 0u);
    }
  }
  // Runs `start(done)` on the core thread and waits for the outcome.
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
  absl::StatusOr<PageId> Reserve() {
    absl::StatusOr<PageId> page;
    core_.RunAndWait([&] { page = tier_->Reserve(kPool); });
    return page;
  }

  MonotonicClock clock_;
  EventLoop core_{"core", 1000, clock_};
  std::shared_ptr<FakeCudaDevice> fake_;
  std::unique_ptr<GpuTier> tier_;
};

TEST_F(CudaTier, APoolThatDoesNotFitIsRefusedWithWhatIsFree) {
  fake_ = std::make_shared<FakeCudaDevice>(1);
  fake_->memory_bytes = 3 * kSlab / 2;
  const absl::Status status = OpenAgain();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("1MiB free of 1MiB"));
}

TEST_F(CudaTier, NoPageHasAHostAddress) {
  ASSERT_TRUE(Open().ok());
  const PageId page = *Reserve();
  core_.RunAndWait([&] { EXPECT_FALSE(tier_->Address(page).has_value()); });
}

// R16: a hit on a failed tier is impossible, and the store is told, within a second of an error that
// nobody caused.
TEST_F(CudaTier, AFailureIsToldWithinASecondAndNothingWorksAfterwards) {
  ASSERT_TRUE(Open().ok());
  absl::Notification lost;
  core_.RunAndWait([&] { tier_->set_on_lost([&lost] { lost.Notify(); }); });
  const SealedPage source(1, kShape), out(kShape);
  const PageId page = *Reserve();
  ASSERT_TRUE(Write(page, source).ok());
  fake_->has_failed = true;
  ASSERT_TRUE(lost.WaitForNotificationWithTimeout(absl::Seconds(1)));
  core_.RunAndWait([&] {
    EXPECT_EQ(tier_->state(), TierState::kFailed);
    EXPECT_THAT(tier_->degraded(), HasSubstr("failed"));
    EXPECT_TRUE(
        absl::IsUnavailable(tier_->Export(page.slab, "a", MemoryAccess::kReadOnly).status()));
  });
  EXPECT_TRUE(absl::IsUnavailable(Reserve().status()));
  EXPECT_TRUE(absl::IsUnavailable(Read(page, source, out)));
  EXPECT_TRUE(absl::IsUnavailable(Write(page, source)));
  core_.RunAndWait([&] {
    tier_->Release(page);
    EXPECT_TRUE(tier_->CheckInvariants().ok());
  });
}

TEST_F(CudaTier, MemoryThatCannotBeRegisteredIsSaidAndNoFailure) {
  ASSERT_TRUE(Open().ok());
  alignas(4096) static std::byte memory[4096];
  fake_->error = CUDA_ERROR_NOT_PERMITTED;
  fake_->failure = FakeFailure::kOnce;
  fake_->fail_at = fake_->calls + 2;  // after the context was made current
  tier_->RegisterMemory({memory, sizeof memory});
  tier_->UnregisterMemory({memory, sizeof memory});
  core_.RunAndWait([&] {
    // The device's own question whether it is well may have taken the failing call.
    if (tier_->state() != TierState::kServing) GTEST_SKIP() << "another call failed";
    EXPECT_THAT(tier_->degraded(), HasSubstr("slowly"));
  });
}

// R16, all N: every call of a tier's life fails once, or from there on.
class CudaTierFails : public CudaTier, public testing::WithParamInterface<FakeFailure> {};

TEST_P(CudaTierFails, WhicheverCallFailsPagesAreRightOrTheTierHasFailed) {
  int failed_opens = 0, failed_runs = 0;
  for (uint64_t n = 1;; ++n) {
    fake_ = std::make_shared<FakeCudaDevice>(1);
    fake_->failure = GetParam();
    fake_->fail_at = n;
    const absl::Status opened = OpenAgain();
    if (!opened.ok()) {
      ++failed_opens;
      Close();
      continue;
    }
    bool has_failed = false;
    for (uint32_t number = 0; number < 3; ++number) {
      const SealedPage source(number, kShape), out(kShape);
      const absl::StatusOr<PageId> page = Reserve();
      if (!page.ok()) {
        has_failed = true;
        break;
      }
      const absl::Status written = Write(*page, source);
      const absl::Status read = written.ok() ? Read(*page, source, out) : written;
      if (read.ok()) {
        ASSERT_TRUE(out.HasPageOf(source)) << "call " << n;
      } else {
        ASSERT_TRUE(absl::IsUnavailable(read)) << read;
        has_failed = true;
      }
    }
    core_.RunAndWait([&] {
      if (!has_failed) return;
      EXPECT_EQ(tier_->state(), TierState::kFailed) << "call " << n;
    });
    failed_runs += has_failed;
    const bool is_over = fake_->calls < n;
    Close();
    ASSERT_EQ(fake_->offences, 0u) << "call " << n;
    if (is_over) break;
    ASSERT_LT(n, 2000u);
  }
  EXPECT_GE(failed_opens, 15);
  EXPECT_GE(failed_runs, 10);
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaTierFails,
                         testing::Values(FakeFailure::kOnce, FakeFailure::kFromThereOn));

}  // namespace
}  // namespace kvstore::tiers
