#include "kvstore/store/moves.h"

#include <algorithm>
#include <utility>

namespace kvstore::store {
namespace {

// While a device sits on late loads: how often those that wait behind them are looked at.
constexpr absl::Duration kLookAtLateEvery = absl::Milliseconds(100);

// A tenant that used a device so recently counts when its queue is split.
constexpr absl::Duration kRecently = absl::Seconds(1);

}  // namespace

Moves::Moves(Copies& copies, Room& room, Executor& executor, const Clock& clock,
             absl::Duration deadline)
    : copies_(copies), room_(room), executor_(executor), clock_(clock), deadline_(deadline) {}

void Moves::Start(NodeId id, TierKind src, TierKind dst, MovePurpose purpose, Done done,
                  OnSlices on_slices) {
  const uint64_t key = Key(id, dst);
  if (auto it = moves_.find(key); it != moves_.end()) {
    if (it->second.is_late) {
      return done(absl::UnavailableError("the device has not ended a former load of the block"));
    }
    it->second.waiters.push_back(std::move(done));
    if (!on_slices) return;
    if (it->second.ready_slices > 0) on_slices(it->second.ready_slices);
    it->second.watchers.push_back(std::move(on_slices));
    return;
  }
  if (copies_.state(id, dst) != CopyState::kAbsent) {
    const bool is_there = copies_.IsResident(id, dst);
    return done(is_there ? absl::OkStatus()
                         : absl::AlreadyExistsError("the copy is being written"));
  }
  const uint32_t tenant = TenantOf(id);
  Move move{.id = id,
            .src = src,
            .dst = dst,
            .purpose = purpose,
            .tenant = tenant,
            .waiters = {},
            .watchers = {}};
  Device& device = DeviceOf(move);
  auto& queue = purpose == MovePurpose::kLoad ? device.loads : device.write_behinds;
  if (!queue.HasRoomFor(tenant)) {
    return done(absl::ResourceExhaustedError(purpose == MovePurpose::kLoad
                                                 ? "too many blocks wait to be loaded"
                                                 : "too many blocks wait to be written behind"));
  }
  if (!copies_.CanHold(id))
    return done(absl::ResourceExhaustedError("too many holds on one block"));
  move.waiters.push_back(std::move(done));
  if (on_slices) move.watchers.push_back(std::move(on_slices));
  moves_.emplace(key, std::move(move));
  copies_.Hold(id);
  num_write_behinds_ += purpose == MovePurpose::kWriteBehind;
  queue.Push(tenant, copies_.tenants().slot_bytes(copies_.PoolOf(id)), key);
  PostPump(device);
}

size_t Moves::size_of(TenantId tenant) const {
  size_t size = 0;
  for (const Device& device : devices_) {
    const auto traffic = device.traffic.find(tenant.value());
    size += device.loads.size_of(tenant.value()) + device.write_behinds.size_of(tenant.value()) +
            (traffic == device.traffic.end() ? 0 : traffic->second.in_flight);
  }
  return size;
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

size_t Moves::PartOf(Device& device) {
  const TierKind kind = static_cast<TierKind>(&device - devices_.data());
  const absl::Time recent = clock_.Now() - kRecently;
  for (const auto* queue : {&device.loads, &device.write_behinds}) {
    for (const uint32_t tenant : queue->waiting())
      device.traffic[tenant].last_active = clock_.Now();
  }
  absl::erase_if(device.traffic, [&](const auto& entry) {
    return entry.second.in_flight == 0 && entry.second.last_active < recent;
  });
  const size_t max = copies_.tier(kind)->inflight_max();
  return std::max<size_t>(1, max / std::max<size_t>(1, device.traffic.size()));
}

void Moves::Pump(Device& device) {
  device.is_pump_posted = false;
  if (HasFailed(device)) FailQueuedLoads(device);
  const size_t part = PartOf(device);
  PumpQueue(device, MovePurpose::kLoad, part);
  PumpQueue(device, MovePurpose::kWriteBehind, part);
}

void Moves::PumpQueue(Device& device, MovePurpose purpose, size_t part) {
  auto& queue = purpose == MovePurpose::kLoad ? device.loads : device.write_behinds;
  while (queue.size() > 0 && MayIssue(device, purpose)) {
    const auto next =
        queue.Pop([&](uint32_t tenant) { return device.traffic[tenant].in_flight < part; });
    if (!next) return;
    Issue(next->second);
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
  const absl::StatusOr<PageId> page = room_.TakePage(dst, copies_.PoolOf(id));
  if (!page.ok()) return Finish(key, page.status());
  copies_.BeginWrite(id, dst, *page);
  Submit(key, &moves_.find(key)->second, *page);
}

void Moves::Submit(uint64_t key, Move* move, PageId dst_page) {
  Device& device = DeviceOf(*move);
  ++device.in_flight;
  ++device.traffic[move->tenant].in_flight;
  if (move->purpose == MovePurpose::kWriteBehind) ++device.write_behinds_in_flight;
  move->submitted = clock_.Now();
  const absl::Time deadline = move->submitted + deadline_;
  if (move->purpose == MovePurpose::kLoad) {
    move->deadline = deadline;
    deadlines_.emplace_back(deadline, key);
    ArmLateness(deadline);
  }
  const PageIdentity identity = copies_.IdentityOf(move->id);
  auto done = [this, key](absl::Status status) { OnCopied(key, std::move(status)); };
  tiers::Tier* dram = copies_.tier(TierKind::kDram);
  if (move->dst == TierKind::kDram && !move->watchers.empty()) {
    copies_.tier(move->src)->ReadBySlices(
        copies_.page(move->id, move->src), identity, *dram->Address(dst_page), deadline,
        [this, key](uint32_t ready_slices) { OnSlicesRead(key, ready_slices); }, std::move(done));
  } else if (move->dst == TierKind::kDram) {
    copies_.tier(move->src)->Read(copies_.page(move->id, move->src), identity,
                                  *dram->Address(dst_page), deadline, std::move(done));
  } else {
    copies_.tier(move->dst)->Write(dst_page, identity,
                                   *dram->Address(copies_.page(move->id, move->src)), deadline,
                                   std::move(done));
  }
}

// The tier tells it before the end of the read, and only then the move goes.
void Moves::OnSlicesRead(uint64_t key, uint32_t ready_slices) {
  Move& move = moves_.find(key)->second;
  if (move.is_late) return;
  move.ready_slices = ready_slices;
  for (OnSlices& watcher : move.watchers) watcher(ready_slices);
}

void Moves::OnCopied(uint64_t key, absl::Status status) {
  const Move& move = moves_.find(key)->second;
  Device& device = DeviceOf(move);
  --device.in_flight;
  Traffic& traffic = device.traffic[move.tenant];
  --traffic.in_flight;
  traffic.last_active = clock_.Now();
  if (move.purpose == MovePurpose::kWriteBehind) --device.write_behinds_in_flight;
  const NodeId id = move.id;
  const TierKind dst = move.dst;
  Count(move, status);
  if (status.ok()) {
    copies_.Publish(id, dst, Recency::kNewest);
  } else {
    copies_.AbandonWrite(id, dst);
    DropSourceIfBad(move, status);
  }
  late_loads_ -= move.is_late;
  const bool is_published = status.ok();
  if (is_published) on_published_(id, dst);  // before the hold ends: the block is sure to be there
  Finish(key, std::move(status));
  PostPump(device);
}

// A move checks its source, whichever side reads it: bytes that differ are the source's. Any other
// failure is the device's.
void Moves::Count(const Move& move, const absl::Status& status) {
  const bool is_load = move.dst < move.src;
  TierCounters& device = copies_.counters(is_load ? move.src : move.dst);
  TierCounters& source = copies_.counters(move.src);
  if (status.ok()) {
    ++source.verified_pages;
    ++(is_load ? device.promoted_pages : device.demoted_pages);
    (is_load ? load_times_[Pos(move.src)] : write_times_[Pos(move.dst)])
        .Record(clock_.Now() - move.submitted);
    return;
  }
  ++device.move_failures;
  if (absl::IsDataLoss(status)) ++source.differing_pages;
  if (absl::IsDeadlineExceeded(status)) ++device.deadline_misses;
  if (absl::IsUnavailable(status) && is_load) ++device.unreadable_pages;
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
  // Those that are there now: who is told may ask again.
  for (size_t left = device.loads.size(); left > 0; --left) {
    const auto next = device.loads.Pop([](uint32_t) { return true; });
    Finish(next->second, absl::UnavailableError("the tier that has the block does not answer"));
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
  if (move.purpose == MovePurpose::kWriteBehind && --num_write_behinds_ == 0 && on_written_)
    on_written_();
}

}  // namespace kvstore::store
