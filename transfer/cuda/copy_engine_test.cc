// Copies over a device that works late and in any order, that can be made to fail at any call, and
// that can stop answering.
#include "transfer/cuda/copy_engine.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_cuda_driver.h"
#include "transfer/cuda/device_memory.h"

namespace kvstore::transfer {
namespace {

constexpr uint64_t kBytes = 256 * FakeCudaDevice::kGranularity;  // 1 MiB

CUdeviceptr At(const void* host) { return reinterpret_cast<CUdeviceptr>(host); }

std::vector<std::byte> RandomBytes(size_t bytes, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    const uint64_t word = random();
    std::memcpy(out.data() + at, &word, 8);
  }
  return out;
}

class CopyEngineTest : public testing::Test {
 protected:
  // With small batches, so that operations share and span them.
  void Open(CopyEngine::Options options = {.pieces_in_batch = 4, .bytes_in_batch = 48 << 10},
            uint32_t seed = 1) {
    fake_ = std::make_shared<FakeCudaDevice>(seed);
    context_ = *CudaContext::Open(MakeFakeCudaDriver(fake_), 0);
    memory_ = *DeviceMemory::Create(context_, kBytes);
    engine_ = *CopyEngine::Create(options, context_, clock_);
  }
  void TearDown() override {
    engine_.reset();
    if (fake_ != nullptr) {
      EXPECT_EQ(fake_->offences, 0u);
    }
  }
  static CopyOperation ToDevice(CUdeviceptr to, const std::byte* from, uint64_t bytes) {
    return {.direction = CopyDirection::kToDevice, .pieces = {{to, At(from), bytes}}};
  }
  static CopyOperation ToHost(std::byte* to, CUdeviceptr from, uint64_t bytes) {
    return {.direction = CopyDirection::kToHost, .pieces = {{At(to), from, bytes}}};
  }
  // Outcome of one operation; shared with its callback, which may come late.
  struct Outcome {
    absl::Mutex mutex;
    int reports ABSL_GUARDED_BY(mutex) = 0;
    absl::Status status ABSL_GUARDED_BY(mutex);
    bool IsThere() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return reports > 0; }
    bool Wait(absl::Duration at_most = absl::Seconds(20)) {
      absl::MutexLock lock(&mutex);
      return mutex.AwaitWithTimeout(absl::Condition(this, &Outcome::IsThere), at_most);
    }
    absl::Status Get() {
      EXPECT_TRUE(Wait());
      absl::MutexLock lock(&mutex);
      EXPECT_EQ(reports, 1);
      return reports > 0 ? status : absl::InternalError("never reported");
    }
  };
  static std::shared_ptr<Outcome> Watch(CopyOperation* operation) {
    auto outcome = std::make_shared<Outcome>();
    operation->done = [outcome](absl::Status status) {
      absl::MutexLock lock(&outcome->mutex);
      ++outcome->reports;
      outcome->status = std::move(status);
    };
    return outcome;
  }
  std::shared_ptr<Outcome> Submit(CopyOperation operation, CopyId* id = nullptr) {
    auto outcome = Watch(&operation);
    const absl::StatusOr<CopyId> submitted = engine_->Submit(std::move(operation));
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (id != nullptr && submitted.ok()) *id = *submitted;
    return outcome;
  }
  absl::Status Copy(CopyOperation operation) { return Submit(std::move(operation))->Get(); }

  MonotonicClock clock_;
  std::shared_ptr<FakeCudaDevice> fake_;
  std::shared_ptr<CudaContext> context_;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<CopyEngine> engine_;
};

TEST_F(CopyEngineTest, WhatGoesInComesOut) {
  Open();
  const std::vector<std::byte> data = RandomBytes(kBytes, 1);
  std::vector<std::byte> back(kBytes);
  ASSERT_TRUE(Copy(ToDevice(memory_->data(), data.data(), kBytes)).ok());
  ASSERT_TRUE(Copy(ToHost(back.data(), memory_->data(), kBytes)).ok());
  EXPECT_EQ(back, data);
}

TEST_F(CopyEngineTest, EveryPieceIsToldOnceInOrderAndWithItsBytesInPlace) {
  Open();
  const std::vector<std::byte> data = RandomBytes(kBytes, 2);
  std::vector<std::byte> back(kBytes);
  ASSERT_TRUE(Copy(ToDevice(memory_->data(), data.data(), kBytes)).ok());
  CopyOperation operation = {.direction = CopyDirection::kToHost};
  constexpr uint32_t kPieces = 37;
  constexpr uint64_t kPieceBytes = 20'000;
  for (uint64_t i = 0; i < kPieces; ++i) {
    const uint64_t at = i * kPieceBytes;
    operation.pieces.push_back({At(back.data() + at), memory_->data() + at, kPieceBytes});
  }
  std::vector<uint32_t> told;  // on the progress thread, before done
  bool all_in_place = true;
  operation.on_piece = [&](uint32_t piece) {
    told.push_back(piece);
    const uint64_t at = piece * kPieceBytes;
    all_in_place &= std::memcmp(back.data() + at, data.data() + at, kPieceBytes) == 0;
  };
  ASSERT_TRUE(Copy(std::move(operation)).ok());
  ASSERT_EQ(told.size(), kPieces);
  for (uint32_t i = 0; i < kPieces; ++i) EXPECT_EQ(told[i], i);
  EXPECT_TRUE(all_in_place);
}

// R15: poisoned destinations, late sources, random order; both directions at once.
TEST_F(CopyEngineTest, UnderAnyOrderADoneIsTheTruthAndSourcesMayBeReusedAfterIt) {
  constexpr uint64_t kPage = 32 << 10;
  constexpr int kSlots = static_cast<int>(kBytes / kPage);
  for (uint32_t seed = 0; seed < 150; ++seed) {
    Open({.pieces_in_batch = 1 + seed % 7, .bytes_in_batch = kPage / 2 + seed % 3 * kPage}, seed);
    fake_->delay_max = absl::Microseconds(seed % 4 * 20);
    std::mt19937 random(seed);
    std::vector<std::vector<std::byte>> pages, copies;
    std::vector<std::shared_ptr<Outcome>> writes, reads;
    for (int i = 0; i < kSlots; ++i) {
      pages.push_back(RandomBytes(kPage, seed * 1000 + static_cast<uint32_t>(i)));
      copies.push_back(pages.back());
      CopyOperation write = ToDevice(memory_->data() + i * kPage, copies[i].data(), kPage);
      write.priority = random() % 2 == 0 ? CopyPriority::kUrgent : CopyPriority::kBackground;
      writes.push_back(Submit(std::move(write)));
    }
    std::vector<std::vector<std::byte>> backs(kSlots, std::vector<std::byte>(kPage));
    for (int i = 0; i < kSlots; ++i) {
      ASSERT_TRUE(writes[i]->Get().ok());
      std::memset(copies[i].data(), 0xAB, kPage);  // reuse
      reads.push_back(Submit(ToHost(backs[i].data(), memory_->data() + i * kPage, kPage)));
    }
    for (int i = 0; i < kSlots; ++i) {
      ASSERT_TRUE(reads[i]->Get().ok());
      ASSERT_EQ(backs[i], pages[i]) << "seed " << seed << ", slot " << i;
    }
    EXPECT_EQ(engine_->in_flight(), 0u);
    engine_.reset();
    memory_.reset();
    ASSERT_EQ(fake_->offences, 0u);
  }
}

TEST_F(CopyEngineTest, AnUrgentOperationOvertakesThoseThatWait) {
  Open({.pieces_in_batch = 1, .bytes_in_batch = 4096, .batches_in_flight = 1});
  fake_->delay_max = absl::Microseconds(50);
  std::vector<std::byte> background(kBytes / 2), urgent(4096);
  CopyOperation slow = ToHost(background.data(), memory_->data(), kBytes / 2);
  slow.priority = CopyPriority::kBackground;
  const auto slow_outcome = Submit(std::move(slow));
  const auto fast_outcome = Submit(ToHost(urgent.data(), memory_->data() + kBytes / 2, 4096));
  ASSERT_TRUE(fast_outcome->Get().ok());
  EXPECT_FALSE(slow_outcome->Wait(absl::ZeroDuration()));
  EXPECT_TRUE(slow_outcome->Get().ok());
}

// Its memory may be handed on when it is reported: the device must be done with it.
TEST_F(CopyEngineTest, ACancelledOperationIsReportedOnlyWhenTheDeviceHasLetGoOfIt) {
  Open({.pieces_in_batch = 1, .bytes_in_batch = 4096, .batches_in_flight = 2});
  std::vector<std::byte> back(kBytes);
  fake_->is_hanging = true;
  CopyId id;
  const auto outcome = Submit(ToHost(back.data(), memory_->data(), kBytes), &id);
  while (back[0] != std::byte{0xDB}) absl::SleepFor(absl::Milliseconds(1));  // the device has it
  engine_->Cancel(id);
  EXPECT_FALSE(outcome->Wait(absl::Milliseconds(100)));
  fake_->is_hanging = false;
  EXPECT_EQ(outcome->Get().code(), absl::StatusCode::kCancelled);
  std::memset(back.data(), 0x11, kBytes);
  ASSERT_TRUE(Copy(ToHost(back.data(), memory_->data(), 4096)).ok());
  EXPECT_EQ(back[4096], std::byte{0x11});
  EXPECT_EQ(back[2 * 4096], std::byte{0x11}) << "the device wrote into memory that was given back";
}

TEST_F(CopyEngineTest, WhatWaitsIsCancelledAtOnce) {
  Open({.pieces_in_batch = 1, .bytes_in_batch = 4096, .batches_in_flight = 1});
  std::vector<std::byte> first(4096), second(4096);
  fake_->is_hanging = true;
  const auto running = Submit(ToHost(first.data(), memory_->data(), 4096));
  CopyId id;
  const auto waiting = Submit(ToHost(second.data(), memory_->data() + 4096, 4096), &id);
  engine_->Cancel(id);
  EXPECT_EQ(waiting->Get().code(), absl::StatusCode::kCancelled);
  fake_->is_hanging = false;
  EXPECT_TRUE(running->Get().ok());
}

TEST_F(CopyEngineTest, APassedDeadlineMovesNothing) {
  Open();
  std::vector<std::byte> back(4096, std::byte{0x22});
  CopyOperation late = ToHost(back.data(), memory_->data(), 4096);
  late.deadline = clock_.Now() - absl::Milliseconds(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Copy(std::move(late))));
  EXPECT_EQ(back[0], std::byte{0x22});
}

TEST_F(CopyEngineTest, OperationsBeyondTheBoundAreRefused) {
  Open({.inflight_max = 2});
  fake_->is_hanging = true;
  std::vector<std::byte> back(3 * 4096);
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (int i = 0; i < 2; ++i) {
    outcomes.push_back(Submit(ToHost(back.data() + i * 4096, memory_->data(), 4096)));
  }
  CopyOperation third = ToHost(back.data(), memory_->data(), 4096);
  EXPECT_TRUE(absl::IsResourceExhausted(engine_->Submit(std::move(third)).status()));
  fake_->is_hanging = false;
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome->Get().ok());
}

TEST_F(CopyEngineTest, StopReportsEverythingAndRefusesTheRest) {
  Open();
  fake_->delay_max = absl::Microseconds(200);
  std::vector<std::byte> back(kBytes);
  const auto outcome = Submit(ToHost(back.data(), memory_->data(), kBytes));
  engine_->Stop();
  EXPECT_TRUE(outcome->Wait(absl::ZeroDuration()));
  const absl::Status status = outcome->Get();
  EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  EXPECT_EQ(engine_->Submit(ToHost(back.data(), memory_->data(), 1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(CopyEngineTest, ASilentDeviceFailsAndStopDoesNotHang) {
  Open({.silence_max = absl::Milliseconds(200), .stop_max = absl::Milliseconds(300)});
  fake_->is_hanging = true;
  auto back = std::make_unique<std::vector<std::byte>>(4096);
  const auto outcome = Submit(ToHost(back->data(), memory_->data(), 4096));
  while (!context_->has_failed()) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_FALSE(outcome->Wait(absl::Milliseconds(50))) << "the device may still write";
  const absl::Time before = absl::Now();
  engine_->Stop();
  EXPECT_LT(absl::Now() - before, absl::Seconds(5));
  EXPECT_TRUE(absl::IsUnavailable(outcome->Get()));
  back.release();  // the fake never lets go of it
}

TEST_F(CopyEngineTest, AFailureShowsWithinASecondAlsoWhenNothingMoves) {
  Open();
  std::vector<std::byte> before(4096);
  ASSERT_TRUE(Copy(ToHost(before.data(), memory_->data(), 4096)).ok());
  absl::SleepFor(absl::Milliseconds(50));  // it is idle now
  absl::Notification told;
  context_->set_on_failed([&told] { told.Notify(); });
  fake_->has_failed = true;
  EXPECT_TRUE(told.WaitForNotificationWithTimeout(absl::Seconds(1)));
  std::vector<std::byte> back(4096);
  EXPECT_TRUE(
      absl::IsUnavailable(engine_->Submit(ToHost(back.data(), memory_->data(), 4096)).status()));
}

// R16. Once: the driver recovers, we do not; a batch that was begun must still be waited for.
class WhicheverCallFails : public CopyEngineTest,
                           public testing::WithParamInterface<FakeFailure> {};

TEST_P(WhicheverCallFails, AnOperationIsRightOrFailedAndTheContextIsFailed) {
  constexpr uint64_t kPage = 24 << 10;
  int failed_runs = 0;
  for (uint64_t n = 1;; ++n) {
    Open();
    fake_->delay_max = absl::Milliseconds(2);
    const uint64_t before = fake_->calls;
    fake_->failure = GetParam();
    fake_->fail_at = before + n;
    const std::vector<std::byte> data = RandomBytes(4 * kPage, 3);
    auto back = std::make_unique<std::vector<std::byte>>(4 * kPage);
    const auto run = [&](CopyOperation operation) {
      auto outcome = Watch(&operation);
      const absl::StatusOr<CopyId> id = engine_->Submit(std::move(operation));
      return id.ok() ? outcome->Get() : id.status();
    };
    const absl::Status in = run(ToDevice(memory_->data(), data.data(), 4 * kPage));
    const absl::Status out = in.ok() ? run(ToHost(back->data(), memory_->data(), 4 * kPage)) : in;
    if (out.ok()) {
      EXPECT_EQ(*back, data) << "call " << n;
    } else {
      EXPECT_TRUE(absl::IsUnavailable(out)) << out;
      EXPECT_TRUE(context_->has_failed()) << "call " << n;
      ++failed_runs;
      // Reported means that nothing more is written, whatever the failing call had begun.
      std::memset(back->data(), 0x33, back->size());
      absl::SleepFor(absl::Milliseconds(10));
      EXPECT_EQ(*back, std::vector<std::byte>(4 * kPage, std::byte{0x33})) << "call " << n;
    }
    engine_.reset();
    memory_.reset();
    if (fake_->calls < before + n) break;
    ASSERT_LT(n, 2000u);
  }
  EXPECT_GE(failed_runs, 6);
}

INSTANTIATE_TEST_SUITE_P(Kinds, WhicheverCallFails,
                         testing::Values(FakeFailure::kOnce, FakeFailure::kFromThereOn));

}  // namespace
}  // namespace kvstore::transfer
