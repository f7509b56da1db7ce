// Load on a daemon that may die at any moment: what it stored is known, what it reads is checked.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <thread>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {

inline constexpr uint32_t kLoadPrefixes = 60;
inline constexpr size_t kLoadBlocks = 12;

// $KVSTORE_TEST_SEED, or another one each time.
inline uint64_t Seed() {
  if (const char* text = std::getenv("KVSTORE_TEST_SEED")) return std::strtoull(text, nullptr, 10);
  return std::random_device{}();
}

// Puts and gets random prefixes until told to stop; failures of the daemon are expected, wrong
// bytes are not.
class Load {
 public:
  Load(const DaemonProcess& daemon, uint64_t seed)
      : client_(daemon.Connect()), random_(seed), thread_([this] { Run(); }) {}
  ~Load() {
    stop_ = true;
    thread_.join();
  }
  uint64_t pages_checked() const { return pages_checked_; }
  uint64_t blocks_stored() const { return blocks_stored_; }
  uint64_t overruns() const { return overruns_; }
  uint64_t successes() const { return successes_; }
  // Every block of it was published at some time.
  bool is_stored(uint32_t prefix) const { return is_stored_[prefix]; }
  absl::Duration slowest_failure() const { return absl::Nanoseconds(slowest_failure_ns_.load()); }

 private:
  static constexpr absl::Duration kDeadline = absl::Seconds(2);

  void Run() {
    while (!stop_) {
      const absl::Time begin = absl::Now();
      const bool is_done = Once(begin + kDeadline);
      const absl::Duration took = absl::Now() - begin;
      if (took > kDeadline + absl::Milliseconds(500))
        ++overruns_;  // 250 ms, and as much for a busy test machine
      if (is_done) {
        ++successes_;
        continue;
      }
      slowest_failure_ns_ = std::max<int64_t>(slowest_failure_ns_, absl::ToInt64Nanoseconds(took));
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  // False: the daemon did not do it.
  bool Once(absl::Time deadline) {
    const NamespaceSpec spec = SmallSpec();
    const absl::StatusOr<client::Namespace> ns = client_->Open("kill-loop", spec, deadline);
    if (!ns.ok()) return false;
    const auto prefix = static_cast<uint32_t>(random_() % kLoadPrefixes);
    const std::vector<BlockHash> hashes = ns->Hash(Tokens(spec, kLoadBlocks, prefix));
    if (random_() % 2 == 0) {
      const auto put = client_->Put(*ns, hashes, PagesBytes(spec, hashes), deadline);
      if (!put.ok()) return false;
      blocks_stored_ += put->stored_blocks;
      if (put->stored_blocks + put->existing_blocks == hashes.size()) is_stored_[prefix] = true;
      return true;
    }
    std::vector<std::byte> pages(hashes.size() * spec.shape.page_bytes());
    const auto got = client_->Get(*ns, hashes, pages, deadline);
    if (!got.ok()) return false;
    const auto expected = PagesBytes(spec, std::span(hashes).first(got->delivered_blocks));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), pages.begin()))
        << "wrong bytes under load";
    pages_checked_ += got->delivered_blocks;
    return true;
  }

  std::unique_ptr<client::Client> client_;
  std::mt19937_64 random_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> pages_checked_ = 0, blocks_stored_ = 0, overruns_ = 0, successes_ = 0;
  std::array<std::atomic<bool>, kLoadPrefixes> is_stored_{};
  std::atomic<int64_t> slowest_failure_ns_ = 0;
  std::thread thread_;
};

}  // namespace kvstore::testing
