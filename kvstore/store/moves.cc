#include "kvstore/store/moves.h"

#include <algorithm>
#include <utility>

namespace kvstore::store {
namespace {

// While a device sits on late loads: how often those that wait behind them are looked at.
constexpr absl::Duration kLookAtLateEvery = absl::Milliseconds(100);

}  // namespace

Moves::Moves(Copies& copies, Executor& executor, const Clock& clock, absl::Duration deadline)
    : copies_(copies), executor_(executor), clock_(clock), deadline_(deadline) {}

void Moves::Start(NodeId id, TierKind src, TierKind dst, MovePurpose purpose, Done done) {
  const uint64_t key = Key(id, dst);
  if (auto it = moves_.find(key); it != moves_.end()) {
    if (it->second.is_late) {
      return done(absl::UnavailableError("the device has not ended a former load of the block"));
    }
    it->second.waiters.push_back(std::move(done));
    return;
  }
  if (copies_.state(id, dst) != CopyState::kAbsent) {
    const bool is_there = copies_.IsResident(id, dst);
    return done(is_there ? absl::OkStatus()
                         : absl::AlreadyExistsError("the copy is being written"));
  }
  Move move{.id = id, .src = src, .dst = dst, .purpose = purpose, .waiters = {}};
  Device& device = DeviceOf(move);
  if (purpose == MovePurpose::kWriteBehind && device.write_behinds.size() >= kWriteBehindQueueMax) {
    return done(absl::ResourceExhaustedError("too many blocks wait to be written behind"));
  }
  if (!copies_.CanHold(id))
    return done(absl::ResourceExhaustedError("too many holds on one block"));
  move.waiters.push_back(std::move(done));
  moves_.emplace(key, std::move(move));
  copies_.Hold(id);
  (purpose == MovePurpose::kLoad ? device.loads : device.write_behinds).push_back(key);
  PostPump(device);
}

void Moves::PostPump(Device& device) {
  if (device.is_pump_posted) return;
  device.is_pump_posted = true;
  executor_.Post([this, &device] { Pump(device); });
}

bool Moves::MayIssue(const Device& device, MovePurpose purpose) const {
  const TierKind kind = static_cast<TierKind>(&device - devices_.data());
  const size_t max = copies_.tier(kind)->inflight_max();
  if (device.in_flight >= max) return false;
  return purpose == MovePurpose::kLoad ||
         device.write_behinds_in_flight < std::max<size_t>(1, max / 2);
}

void Moves::Pump(Device& device) {
  device.is_pump_posted = false;
  if (HasFailed(device)) FailQueuedLoads(device);
  while (!device.loads.empty() && MayIssue(device, MovePurpose::kLoad)) {
    const uint64_t key = device.loads.front();
    device.loads.pop_front();
    Issue(key);
  }
  while (!device.write_behinds.empty() && MayIssue(device, MovePurpose::kWriteBehind)) {
    const uint64_t key = device.write_behinds.front();
    device.write_behinds.pop_front();
    Issue(key);
  }
}

Moves::Way Moves::Route(uint64_t key) const {
  const Move& move = moves_.find(key)->second;
  return {move.id, move.src, move.dst};
}

void Moves::Issue(uint64_t key) {
  const auto [id, src, dst] = Route(key);  // by value: taking a page may start other moves
  if (!copies_.IsResident(id, src)) {
    return Finish(key, absl::DataLossError("the copy was lost before it could be moved"));
  }
  if (copies_.state(id, dst) != CopyState::kAbsent) {
    return Finish(key, copies_.IsResident(id, dst)
                           ? absl::OkStatus()
                           : absl::AlreadyExistsError("the copy is being written"));
  }
  const absl::StatusOr<PageId> page = copies_.TakePage(dst, copies_.PoolOf(id));
  if (!page.ok()) return Finish(key, page.status());
  copies_.BeginWrite(id, dst, *page);
  Submit(key, moves_.find(key)->second, *page);
}

void Moves::Submit(uint64_t key, Move& move, PageId dst_page) {
  Device& device = DeviceOf(move);
  ++device.in_flight;
  if (move.purpose == MovePurpose::kWriteBehind) ++device.write_behinds_in_flight;
  const absl::Time deadline = clock_.Now() + deadline_;
  if (move.purpose == MovePurpose::kLoad) {
    move.deadline = deadline;
    deadlines_.emplace_back(deadline, key);
    ArmLateness(deadline);
  }
  const PageIdentity identity = copies_.IdentityOf(move.id);
  auto done = [this, key](absl::Status status) { OnCopied(key, std::move(status)); };
  tiers::Tier* dram = copies_.tier(TierKind::kDram);
  if (move.dst == TierKind::kDram) {
    copies_.tier(move.src)->Read(copies_.page(move.id, move.src), identity,
                                 *dram->Address(dst_page), deadline, std::move(done));
  } else {
    copies_.tier(move.dst)->Write(dst_page, identity,
                                  *dram->Address(copies_.page(move.id, move.src)), deadline,
                                  std::move(done));
  }
}

void Moves::OnCopied(uint64_t key, absl::Status status) {
  const Move& move = moves_.find(key)->second;
  Device& device = DeviceOf(move);
  --device.in_flight;
  if (move.purpose == MovePurpose::kWriteBehind) --device.write_behinds_in_flight;
  const NodeId id = move.id;
  const TierKind dst = move.dst;
  if (status.ok()) {
    copies_.Publish(id, dst, Recency::kNewest);
    ++(dst < move.src ? copies_.counters(move.src).promoted_pages
                      : copies_.counters(dst).demoted_pages);
  } else {
    ++copies_.counters(dst < move.src ? move.src : dst).move_failures;
    copies_.AbandonWrite(id, dst);
    DropSourceIfBad(move, status);
  }
  late_loads_ -= move.is_late;
  const bool is_published = status.ok();
  if (is_published) on_published_(id, dst);  // before the hold ends: the block is sure to be there
  Finish(key, std::move(status));
  PostPump(device);
}

// DataLoss is the source's, of reads and of writes (its bytes are not what was committed).
void Moves::DropSourceIfBad(const Move& move, const absl::Status& status) {
  if (absl::IsDataLoss(status) && copies_.IsResident(move.id, move.src))
    copies_.Drop(move.id, move.src, DropReason::kLost);
}

bool Moves::HasFailed(const Device& device) const {
  const TierKind kind = static_cast<TierKind>(&device - devices_.data());
  return copies_.tier(kind)->state() == tiers::TierState::kFailed;
}

void Moves::FailQueuedLoads(Device& device) {
  for (const uint64_t key : std::exchange(device.loads, {})) {
    Finish(key, absl::UnavailableError("the tier that has the block does not answer"));
  }
}

void Moves::ArmLateness(absl::Time when) {
  if (std::exchange(is_lateness_armed_, true)) return;
  executor_.PostAt(when, [this] {
    is_lateness_armed_ = false;
    TellLateLoads();
  });
}

void Moves::TellLateLoads() {
  const absl::Time now = clock_.Now();
  while (!deadlines_.empty() && deadlines_.front().first <= now) {
    const auto [deadline, key] = deadlines_.front();
    deadlines_.pop_front();
    auto it = moves_.find(key);
    // Another load of the same block may have begun since: it has a deadline of its own.
    if (it == moves_.end() || it->second.is_late || it->second.deadline != deadline) continue;
    it->second.is_late = true;
    ++late_loads_;
    for (Done& waiter : std::exchange(it->second.waiters, {})) {
      waiter(absl::DeadlineExceededError("a load took longer than limits.move_deadline"));
    }
  }
  if (late_loads_ > 0) {
    for (const TierKind kind : kAllTiers) {
      if (copies_.Has(kind)) PostPump(devices_[Pos(kind)]);
    }
    ArmLateness(now + kLookAtLateEvery);
  } else if (!deadlines_.empty()) {
    ArmLateness(deadlines_.front().first);
  }
}

void Moves::Finish(uint64_t key, absl::Status status) {
  auto it = moves_.find(key);
  Move move = std::move(it->second);
  moves_.erase(it);
  if (!status.ok() && move.dst > move.src && copies_.IsResident(move.id, move.src))
    copies_.MarkUnwritable(move.id);
  for (Done& waiter : move.waiters) waiter(status);
  copies_.Unhold(move.id);
  if (moves_.empty() && on_idle_) on_idle_();
}

}  // namespace kvstore::store
