// Moves in flight: one block from one tier to another, with DRAM on one side.
//
// Loads go before write-behind copies, which never use more than half of a device's queue. A move
// holds its block (nothing of it is evicted) and ends exactly once. The source stays valid until
// the copy is published.
//
// Failure: a source that the tier reports as DataLoss is dropped (quarantined and counted): the
// block is "not resident there". Every other failure loses only the attempt: a disk that is slow or
// silent for a while has its pages afterwards.
//
// Deadline: whoever waits for a load is told at its deadline. A device may keep the memory for
// longer: such a move is late, holds its block and its pages until the tier lets go of them, and
// nobody waits for it. Loads that wait for a tier that has failed end at once.
//
// Confined to the core thread.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"

namespace kvstore::store {

enum class MovePurpose { kLoad, kWriteBehind };

class Moves {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;
  // Blocks that may wait to be written behind. They pin their pages in the hotter tier, so the
  // queue must not hold a large part of it; a block that finds it full stays dirty and is written
  // when it is about to be evicted.
  static constexpr size_t kWriteBehindQueueMax = 4096;

  Moves(Copies& copies, Executor& executor, const Clock& clock, absl::Duration deadline);

  // Copies `id` from `src` to `dst`. Joins the move that is already bringing the block to `dst`.
  // Only queues: pages are taken and tiers called in a task of its own, so that nothing is evicted
  // under the caller's feet. `done` runs before this returns only when there is nothing to move.
  // Errors through `done`: AlreadyExists, somebody is writing that copy; ResourceExhausted, no page
  // or no place in the queue; what the tier reported.
  // Requires: resident in `src`; exactly one of the two is DRAM.
  void Start(NodeId id, TierKind src, TierKind dst, MovePurpose purpose, Done done);
  bool IsMovingTo(NodeId id, TierKind dst) const { return moves_.contains(Key(id, dst)); }
  size_t size() const { return moves_.size(); }

  // Told of every copy that a move published.
  void set_on_published(std::function<void(NodeId, TierKind)> f) { on_published_ = std::move(f); }
  // Told when the last move has ended.
  void set_on_idle(std::function<void()> f) { on_idle_ = std::move(f); }

 private:
  struct Move {
    NodeId id = index::kNoNode;
    TierKind src{};
    TierKind dst{};
    MovePurpose purpose{};
    std::vector<Done> waiters;
    absl::Time deadline = absl::InfiniteFuture();  // from Submit() on
    bool is_late = false;                          // its waiters were told
  };
  struct Way {
    NodeId id;
    TierKind src;
    TierKind dst;
  };
  struct Device {
    std::deque<uint64_t> loads;  // keys of moves that wait
    std::deque<uint64_t> write_behinds;
    size_t in_flight = 0;
    size_t write_behinds_in_flight = 0;
    bool is_pump_posted = false;
  };

  static uint64_t Key(NodeId id, TierKind dst) { return uint64_t{id} << 2 | Pos(dst); }
  Device& DeviceOf(const Move& move) {
    return devices_[Pos(move.src == TierKind::kDram ? move.dst : move.src)];
  }
  void PostPump(Device& device);
  void Pump(Device& device);
  bool MayIssue(const Device& device, MovePurpose purpose) const;
  Way Route(uint64_t key) const;
  void Issue(uint64_t key);
  void Submit(uint64_t key, Move& move, PageId dst_page);
  void OnCopied(uint64_t key, absl::Status status);
  void Finish(uint64_t key, absl::Status status);
  void DropSourceIfBad(const Move& move, const absl::Status& status);
  bool HasFailed(const Device& device) const;
  void FailQueuedLoads(Device& device);
  void ArmLateness(absl::Time when);
  void TellLateLoads();

  Copies& copies_;
  Executor& executor_;
  const Clock& clock_;
  const absl::Duration deadline_;
  absl::flat_hash_map<uint64_t, Move> moves_;
  std::array<Device, tiers::kNumTierKinds> devices_;
  std::deque<std::pair<absl::Time, uint64_t>> deadlines_;  // of loads, in order, with their key
  bool is_lateness_armed_ = false;
  size_t late_loads_ = 0;
  std::function<void(NodeId, TierKind)> on_published_;
  std::function<void()> on_idle_;
};

}  // namespace kvstore::store
