#include "kvstore/store/moves.h"

#include <algorithm>
#include <utility>

namespace kvstore::store {

Moves::Moves(Copies& copies, Executor& executor, const Clock& clock, absl::Duration deadline)
    : copies_(copies), executor_(executor), clock_(clock), deadline_(deadline) {}

void Moves::Start(NodeId id, TierKind src, TierKind dst, MovePurpose purpose, Done done) {
  const uint64_t key = Key(id, dst);
  if (auto it = moves_.find(key); it != moves_.end()) {
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
  num_write_behinds_ += purpose == MovePurpose::kWriteBehind;
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
  Submit(key, &moves_.find(key)->second, *page);
}

void Moves::Submit(uint64_t key, Move* move, PageId dst_page) {
  Device& device = DeviceOf(*move);
  ++device.in_flight;
  if (move->purpose == MovePurpose::kWriteBehind) ++device.write_behinds_in_flight;
  move->submitted = clock_.Now();
  const absl::Time deadline = move->submitted + deadline_;
  const PageIdentity identity = copies_.IdentityOf(move->id);
  auto done = [this, key](absl::Status status) { OnCopied(key, std::move(status)); };
  tiers::Tier* dram = copies_.tier(TierKind::kDram);
  if (move->dst == TierKind::kDram) {
    copies_.tier(move->src)->Read(copies_.page(move->id, move->src), identity,
                                  *dram->Address(dst_page), deadline, std::move(done));
  } else {
    copies_.tier(move->dst)->Write(dst_page, identity,
                                   *dram->Address(copies_.page(move->id, move->src)), deadline,
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
  Count(move, status);
  if (status.ok()) {
    copies_.Publish(id, dst, Recency::kNewest);
  } else {
    copies_.AbandonWrite(id, dst);
    DropSourceIfBad(move, status);
  }
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

// Read errors are the source's; of the errors of a write only DataLoss is (its bytes are not what
// was committed).
void Moves::DropSourceIfBad(const Move& move, const absl::Status& status) {
  const bool is_read = move.dst == TierKind::kDram;
  const bool is_bad = absl::IsDataLoss(status) || (is_read && absl::IsUnavailable(status));
  if (is_bad && copies_.IsResident(move.id, move.src))
    copies_.Drop(move.id, move.src, DropReason::kLost);
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
