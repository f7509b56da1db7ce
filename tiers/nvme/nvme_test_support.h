// For the tests of the NVMe tier: a directory, pages with distinct bytes, and calls that wait.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "kvstore/base/executor.h"
#include "tiers/nvme/nvme_tier.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {

// Removed at the end. On a real file system: /tmp may be tmpfs.
class TestDirectory {
 public:
  TestDirectory() {
    char name[] = "/var/tmp/nvme_test.XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TestDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A sealed slot in aligned memory, filled from its identity so that no two pages are alike.
class TestPage {
 public:
  static PageIdentity Identity(uint32_t number, PageShape shape, uint64_t epoch = 1) {
    PageIdentity identity;
    identity.shape = shape;
    identity.fingerprint.bytes.fill(0x42);
    identity.epoch = epoch;
    identity.hash.bytes.fill(0x11);
    std::memcpy(identity.hash.bytes.data(), &number, sizeof number);
    identity.parent.bytes.fill(0x22);
    identity.block_index = number;
    return identity;
  }
  explicit TestPage(PageShape shape)
      : bytes_(shape.slot_bytes()),
        data_(static_cast<std::byte*>(std::aligned_alloc(4096, shape.slot_bytes()))) {
    std::memset(data_, 0xee, bytes_);
  }
  TestPage(uint32_t number, PageShape shape, uint64_t epoch = 1) : TestPage(shape) {
    identity_ = Identity(number, shape, epoch);
    uint64_t state = number * 0x9e3779b97f4a7c15 + epoch;
    for (uint64_t i = 0; i < shape.page_bytes(); ++i) {
      state = state * 6364136223846793005 + 1442695040888963407;
      data_[i] = static_cast<std::byte>(state >> 56);
    }
    identity_.page_checksum = transfer::SealSlot(data_, identity_);
  }
  ~TestPage() { std::free(data_); }
  TestPage(const TestPage&) = delete;
  TestPage& operator=(const TestPage&) = delete;

  const PageIdentity& identity() const { return identity_; }
  MutableRegion region() const { return {data_, bytes_}; }
  bool SameBytes(const TestPage& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0;
  }

 private:
  size_t bytes_;
  std::byte* data_;
  PageIdentity identity_;
};

inline constexpr PageShape kTestShape{.num_slices = 3, .slice_bytes = 21001};  // odd on purpose
inline constexpr PoolId kTestPool{7};

inline NvmeOptions TestOptions(const std::string& dir) {
  return {.dirs = {dir},
          .capacity_bytes = 40 << 20,
          .index_bytes = 8 << 20,
          .extent_bytes = 4 << 20,
          .queue_depth = 16,
          .inflight_max = 64};
}

// A tier on a core thread of its own. Calls wait for their completion.
class RunningTier {
 public:
  struct Recovered {
    absl::Status finished = absl::UnknownError("not called");
    std::vector<RecoveredPage> pages;
    std::map<std::string, std::string> metadata;
    std::vector<size_t> batches;
  };

  static absl::StatusOr<std::unique_ptr<RunningTier>> Start(NvmeOptions options) {
    auto running = std::make_unique<RunningTier>();
    auto tier = NvmeTier::Open(std::move(options), running->core_, running->clock_);
    if (!tier.ok()) return tier.status();
    running->tier_ = *std::move(tier);
    running->OnCore([&] {
      (void)running->tier_->OpenPool(kTestPool,
                                     {.tenant = "default", .slot_bytes = kTestShape.slot_bytes()});
    });
    return running;
  }
  RunningTier() : core_("test-core", 1 << 20, clock_) {}
  ~RunningTier() {
    Stop();
    core_.Stop();
  }
  void Stop() {
    if (tier_ != nullptr) OnCore([&] { tier_.reset(); });
  }

  NvmeTier& tier() { return *tier_; }
  Clock& clock() { return clock_; }
  void OnCore(Task task) { core_.RunAndWait(std::move(task)); }

  absl::StatusOr<PageId> Reserve(PoolId pool = kTestPool) {
    absl::StatusOr<PageId> page;
    OnCore([&] { page = tier_->Reserve(pool); });
    return page;
  }
  void Release(PageId page) {
    OnCore([&] { tier_->Release(page); });
  }
  absl::Status Write(PageId page, const TestPage& content,
                     absl::Duration limit = absl::Seconds(30)) {
    return Wait([&](Tier::Done done) {
      tier_->Write(page, content.identity(), content.region(), clock_.Now() + limit,
                   std::move(done));
    });
  }
  absl::StatusOr<PageId> Store(const TestPage& content) {
    auto page = Reserve();
    if (!page.ok()) return page;
    absl::Status status = Write(*page, content);
    if (!status.ok()) return status;
    return page;
  }
  absl::Status Read(PageId page, const PageIdentity& expect, MutableRegion into,
                    absl::Duration limit = absl::Seconds(30)) {
    return Wait([&](Tier::Done done) {
      tier_->Read(page, expect, into, clock_.Now() + limit, std::move(done));
    });
  }
  absl::Status ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion into,
                            Tier::OnSlices on_slices) {
    return Wait([&](Tier::Done done) {
      tier_->ReadBySlices(page, expect, into, clock_.Now() + absl::Seconds(30),
                          std::move(on_slices), std::move(done));
    });
  }
  // OK only if the page reads back byte for byte.
  absl::Status Check(PageId page, const TestPage& content) {
    TestPage into(content.identity().shape);
    absl::Status status = Read(page, content.identity(), into.region());
    if (status.ok() && !into.SameBytes(content)) {
      return absl::InternalError("WRONG BYTES reported as success");
    }
    return status;
  }
  absl::Status SaveMetadata(std::string key, std::string value) {
    return Wait([&](Tier::Done done) {
      tier_->SaveMetadata(std::move(key), std::move(value), std::move(done));
    });
  }
  Recovered Recover(std::function<bool(const RecoveredPage&)> keep = {}) {
    auto recovered = std::make_shared<Recovered>();
    absl::Notification finished;
    OnCore([&] {
      tier_->Recover(
          {.on_metadata = [recovered](std::string key,
                                      std::string value) { recovered->metadata[key] = value; },
           .on_pages =
               [recovered, keep](const std::vector<RecoveredPage>& pages) {
                 std::vector<bool> keeps;
                 for (const RecoveredPage& page : pages) {
                   keeps.push_back(!keep || keep(page));
                   if (keeps.back()) recovered->pages.push_back(page);
                 }
                 recovered->batches.push_back(pages.size());
                 return keeps;
               },
           .pool_of =
               [](const PageIdentity& identity) {
                 return identity.shape == kTestShape ? kTestPool : PoolId(99);
               },
           .on_finished =
               [recovered, &finished](absl::Status status) {
                 recovered->finished = status;
                 finished.Notify();
               }});
    });
    finished.WaitForNotification();
    return *recovered;
  }
  TierStats stats() {
    TierStats stats;
    OnCore([&] { stats = tier_->stats(); });
    return stats;
  }
  std::string degraded() {
    std::string text;
    OnCore([&] { text = tier_->degraded(); });
    return text;
  }
  TierState state() {
    TierState state{};
    OnCore([&] { state = tier_->state(); });
    return state;
  }
  absl::Status CheckInvariants() {
    absl::Status status;
    OnCore([&] { status = tier_->CheckInvariants(); });
    return status;
  }

 private:
  absl::Status Wait(std::function<void(Tier::Done)> start) {
    auto state = std::make_shared<std::pair<absl::Notification, absl::Status>>();
    OnCore([&] {
      start([state](absl::Status status) {
        state->second = std::move(status);
        state->first.Notify();
      });
    });
    state->first.WaitForNotification();
    return state->second;
  }

  MonotonicClock clock_;
  EventLoop core_;
  std::unique_ptr<NvmeTier> tier_;
};

}  // namespace kvstore::tiers
