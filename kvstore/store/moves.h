// Moves in flight: one block from one tier to another, with DRAM on one side.
//
// Loads go before write-behind copies, which never use more than half of a device's queue. Among
// equals tenants are served in turn, by bytes, and none has more in flight on a device than its
// part of the queue: all of it while it is alone. A move holds its block (nothing of it is evicted)
// and ends exactly once. The source stays valid until the copy is published.
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
#include <functional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/latency_histogram.h"
#include "kvstore/policy/fair_queue.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/room.h"

namespace kvstore::store {

enum class MovePurpose { kLoad, kWriteBehind };

class Moves {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;
  // Blocks of one tenant that may wait to be written behind, and of all tenants, per device. They
  // pin their pages in the hotter tier, so the queue must not hold a large part of it; a block that
  // finds it full stays dirty and is written when it is about to be evicted.
  static constexpr policy::FairQueue<uint64_t>::Limits kWriteBehindQueue = {
      .items_max = 8192, .items_per_tenant_max = 4096};
  // Blocks that may wait to be loaded: four times what one call may ask for. A lease that finds the
  // queue full is cut off there.
  static constexpr policy::FairQueue<uint64_t>::Limits kLoadQueue = {
      .items_max = size_t{1} << 20, .items_per_tenant_max = size_t{1} << 18};

  Moves(Copies& copies, Room& room, Executor& executor, const Clock& clock,
        absl::Duration deadline);

  // Told how many leading slices of a page that is on its way up are there and checked: a rising
  // count, and from 0 again if the move is tried anew.
  using OnSlices = absl::AnyInvocable<void(uint32_t ready_slices)>;
  // Copies `id` from `src` to `dst`. Joins the move that is already bringing the block to `dst`.
  // Only queues: pages are taken and tiers called in a task of its own, so that nothing is evicted
  // under the caller's feet. `done` runs before this returns only when there is nothing to move.
  // Errors through `done`: AlreadyExists, somebody is writing that copy; ResourceExhausted, no page
  // or no place in the queue; what the tier reported.
  // Requires: resident in `src`; exactly one of the two is DRAM.
  // `on_slices` may run before this returns, with what is there already, and never after `done`.
  void Start(NodeId id, TierKind src, TierKind dst, MovePurpose purpose, Done done,
             OnSlices on_slices = nullptr);
  // In flight and waiting.
  size_t size_of(TenantId tenant) const;
  bool IsMovingTo(NodeId id, TierKind dst) const { return moves_.contains(Key(id, dst)); }
  size_t size() const { return moves_.size(); }
  // Of those, copies into colder tiers.
  size_t num_write_behinds() const { return num_write_behinds_; }
  // Moves that wait for a place in the queue of a device: the GPU's or NVMe's.
  size_t num_waiting(TierKind kind) const {
    return devices_[Pos(kind)].loads.size() + devices_[Pos(kind)].write_behinds.size();
  }
  // Of moves that ended well: out of `kind` to a hotter tier, into `kind` from a hotter one.
  LatencyHistogram::Snapshot load_times(TierKind kind) const {
    return load_times_[Pos(kind)].snapshot();
  }
  LatencyHistogram::Snapshot write_times(TierKind kind) const {
    return write_times_[Pos(kind)].snapshot();
  }

  // Told of every copy that a move published.
  void set_on_published(std::function<void(NodeId, TierKind)> f) { on_published_ = std::move(f); }
  // Told when the last write-behind move has ended.
  void set_on_written(std::function<void()> f) { on_written_ = std::move(f); }

 private:
  struct Move {
    NodeId id = index::kNoNode;
    TierKind src{};
    TierKind dst{};
    MovePurpose purpose{};
    uint32_t tenant = 0;  // TenantId
    std::vector<Done> waiters;
    std::vector<OnSlices> watchers;
    uint32_t ready_slices = 0;
    absl::Time submitted;                          // to the tier
    absl::Time deadline = absl::InfiniteFuture();  // from Submit() on
    bool is_late = false;                          // its waiters were told
  };
  struct Way {
    NodeId id;
    TierKind src;
    TierKind dst;
  };
  struct Traffic {
    size_t in_flight = 0;
    absl::Time last_active;
  };
  struct Device {
    policy::FairQueue<uint64_t> loads{kLoadQueue};  // keys of moves that wait
    policy::FairQueue<uint64_t> write_behinds{kWriteBehindQueue};
    size_t in_flight = 0;
    size_t write_behinds_in_flight = 0;
    absl::flat_hash_map<uint32_t, Traffic> traffic;  // by TenantId; recent ones
    bool is_pump_posted = false;
  };

  static uint64_t Key(NodeId id, TierKind dst) { return uint64_t{id} << 2 | Pos(dst); }
  Device& DeviceOf(const Move& move) {
    return devices_[Pos(move.src == TierKind::kDram ? move.dst : move.src)];
  }
  void PostPump(Device& device);
  void Pump(Device& device);
  bool MayIssue(const Device& device, MovePurpose purpose) const;
  // How much one tenant may have in flight now.
  size_t PartOf(Device& device);
  void PumpQueue(Device& device, MovePurpose purpose, size_t part);
  uint32_t TenantOf(NodeId id) const {
    return copies_.tenants().tenant_of(copies_.PoolOf(id)).value();
  }
  Way Route(uint64_t key) const;
  void Issue(uint64_t key);
  void Submit(uint64_t key, Move* move, PageId dst_page);
  void OnSlicesRead(uint64_t key, uint32_t ready_slices);
  void OnCopied(uint64_t key, absl::Status status);
  void Finish(uint64_t key, absl::Status status);
  void Count(const Move& move, const absl::Status& status);
  void DropSourceIfBad(const Move& move, const absl::Status& status);
  bool HasFailed(const Device& device) const;
  void FailQueuedLoads(Device& device);
  void ArmLateness(absl::Time when);
  void TellLateLoads();

  Copies& copies_;
  Room& room_;
  Executor& executor_;
  const Clock& clock_;
  const absl::Duration deadline_;
  absl::flat_hash_map<uint64_t, Move> moves_;
  std::array<Device, tiers::kNumTierKinds> devices_;
  std::deque<std::pair<absl::Time, uint64_t>> deadlines_;  // of loads, in order, with their key
  bool is_lateness_armed_ = false;
  size_t late_loads_ = 0;
  std::function<void(NodeId, TierKind)> on_published_;
  std::function<void()> on_written_;
  size_t num_write_behinds_ = 0;
  std::array<LatencyHistogram, tiers::kNumTierKinds> load_times_;
  std::array<LatencyHistogram, tiers::kNumTierKinds> write_times_;
};

}  // namespace kvstore::store
