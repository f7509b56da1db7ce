// A tier in memory that misbehaves on request: for tests of the store on virtual time.
//
// Copies are made when an operation *completes*, not when it is submitted, so that a store which
// lets go of a page too early moves wrong bytes and is caught. A page's content is taken to be
// right when its first 8 bytes are the identity's page checksum.
//
// Confined to the test's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/slot_allocator.h"
#include "tiers/tier.h"

namespace kvstore::tests {

class FaultyTier final : public tiers::DurableTier {
 public:
  struct Options {
    tiers::TierKind kind{};
    uint32_t num_slabs = 4;
    uint64_t slab_bytes = 64 * 4096;
    double fault_rate = 0;       // share of reads and writes that fail
    double corruption_rate = 0;  // share of writes whose bytes are damaged later, unnoticed
    absl::Duration delay_max = absl::Milliseconds(20);
    size_t inflight_max = 16;
    bool is_kept = false;  // memory that outlives the process, with metadata at hand
  };
  FaultyTier(Options options, Executor& executor, const Clock& clock, uint64_t seed);

  tiers::TierKind kind() const override { return options_.kind; }
  absl::Status OpenPool(PoolId pool, const tiers::PoolSpec& spec) override {
    return slots_.OpenPool(pool, spec.slot_bytes);
  }
  absl::StatusOr<PageId> Reserve(PoolId pool) override {
    if (state_ != tiers::TierState::kServing) return absl::UnavailableError("not serving");
    return slots_.Reserve(pool);
  }
  void Release(PageId page) override;
  void Quarantine(PageId page) override;
  void CloseSlab(uint32_t slab) override { slots_.Close(slab); }
  void ReopenSlab(uint32_t slab) override { slots_.Reopen(slab); }
  void Write(PageId page, const PageIdentity& identity, ConstRegion src, absl::Time deadline,
             Done done) override;
  void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
            Done done) override;
  // Tells each slice but the last in a task of its own, and then does as Read().
  void ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    OnSlices on_slices, Done done) override;
  std::optional<MutableRegion> Address(PageId page) override;
  uint64_t capacity_bytes() const override { return slots_.capacity_bytes(); }
  uint64_t FreeSlots(PoolId pool) const override { return slots_.FreeSlots(pool); }
  size_t inflight_max() const override { return options_.inflight_max; }
  tiers::TierStats stats() const override;
  tiers::TierState state() const override { return state_; }
  absl::Status CheckInvariants() const override { return slots_.CheckInvariants(); }
  tiers::Durable* durable() override {
    return options_.is_kept || options_.kind == tiers::TierKind::kNvme ? this : nullptr;
  }
  std::vector<std::pair<std::string, std::string>> metadata() const override {
    if (!options_.is_kept) return {};
    return {metadata_.begin(), metadata_.end()};
  }
  void NotePublished(PageId, const PageIdentity& identity) override { noted_.push_back(identity); }
  void Stop() override {}
  void Recover(RecoveryHooks hooks) override;
  void SaveMetadata(std::string key, std::string value, Done done) override;

  void set_state(tiers::TierState state) { state_ = state; }
  void set_on_lost(std::function<void()> on_lost) override { on_lost_ = std::move(on_lost); }
  // The device is gone, and everything on it.
  void Lose() {
    state_ = tiers::TierState::kFailed;
    executor_.Post([this] { on_lost_(); });
  }
  // A device that keeps what it is given, past every deadline, until it is let go.
  void Hang() { is_hanging_ = true; }
  void LetGo() {
    is_hanging_ = false;
    for (Task& task : std::exchange(held_, {})) executor_.Post(std::move(task));
  }
  void set_fault_rate(double rate) { options_.fault_rate = rate; }
  // The next `count` reads end with `status`.
  void FailNextReads(size_t count, absl::Status status) {
    failing_reads_ = count;
    read_failure_ = std::move(status);
  }
  // Writes of such pages end Unavailable from now on.
  void RefuseWrites(std::function<bool(const PageIdentity&)> is_refused) {
    is_refused_ = std::move(is_refused);
  }
  // SaveMetadata() ends with `status` from now on.
  void FailMetadata(absl::Status status) { metadata_failure_ = std::move(status); }
  // What Recover() will tell, as if an earlier run had left it.
  void AddRecovered(PoolId pool, const PageIdentity& identity) {
    recovered_.emplace_back(pool, identity);
  }
  void AddRecoveredMetadata(std::string key, std::string value) {
    metadata_[std::move(key)] = std::move(value);
  }
  const absl::flat_hash_map<std::string, std::string>& saved_metadata() const { return metadata_; }
  size_t in_flight() const { return in_flight_; }
  // What the store said that pages are, in order.
  const std::vector<PageIdentity>& noted() const { return noted_; }
  size_t recovered_and_refused() const { return refused_; }
  // Damages the stored bytes of a page.
  void Corrupt(PageId page) { At(page)[0] ^= std::byte{0x40}; }

 private:
  std::byte* At(PageId page);
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(random_) < p; }
  void TellSlices(uint32_t slices, PageId page, const PageIdentity& expect, MutableRegion dst,
                  absl::Time deadline, OnSlices on_slices, Done done);
  // Runs `copy` and then `done` with its status, after a random delay.
  void Later(absl::Time deadline, absl::AnyInvocable<absl::Status()> copy, Done done);

  Options options_;
  Executor& executor_;
  const Clock& clock_;
  std::mt19937_64 random_;
  tiers::SlotAllocator slots_;
  std::vector<std::vector<std::byte>> slabs_;
  absl::flat_hash_map<std::string, std::string> metadata_;
  std::vector<std::pair<PoolId, PageIdentity>> recovered_;
  std::vector<PageIdentity> noted_;
  tiers::TierState state_ = tiers::TierState::kServing;
  tiers::TierStats stats_;
  size_t failing_reads_ = 0;
  absl::Status read_failure_;
  std::function<bool(const PageIdentity&)> is_refused_ = [](const PageIdentity&) { return false; };
  absl::Status metadata_failure_;
  std::function<void()> on_lost_;
  bool is_hanging_ = false;
  std::vector<Task> held_;
  size_t in_flight_ = 0;
  size_t refused_ = 0;
};

}  // namespace kvstore::tests
