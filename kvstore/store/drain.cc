#include "kvstore/store/drain.h"

#include <algorithm>
#include <utility>

namespace kvstore::store {
namespace {

uint64_t DemotedPages(const Copies& copies) {
  uint64_t pages = 0;
  for (const TierKind kind : kAllTiers) pages += copies.counters(kind).demoted_pages;
  return pages;
}

}  // namespace

void Drain::Start(Done done) {
  waiters_.push_back(std::move(done));
  if (waiters_.size() > 1) return;
  is_on_ = true;
  write_behind_.set_is_draining(true);
  written_before_ = DemotedPages(copies_);
  // What a colder tier refused is offered once more.
  copies_.TakeUnwritable(0, SIZE_MAX);
  BeginRound();
}

void Drain::Cancel() {
  is_on_ = false;
  write_behind_.set_is_draining(false);
  for (Done& done : std::exchange(waiters_, {}))
    done(absl::CancelledError("the drain was ended by a resume"));
}

DrainResult Drain::progress() const {
  return {.written_blocks = is_on_ ? DemotedPages(copies_) - written_before_ : 0,
          .waiting_blocks = moves_.num_write_behinds(),
          .memory_only_blocks = memory_only_};
}

void Drain::BeginRound() {
  next_ = 0;
  is_round_over_ = false;
  started_in_round_ = 0;
  memory_only_ = 0;
  PostStep();
}

void Drain::PostStep() {
  if (std::exchange(is_step_posted_, true)) return;
  executor_.Post([this] { Step(); });
}

void Drain::Step() {
  is_step_posted_ = false;
  if (waiters_.empty() || is_round_over_) return;
  is_queue_full_ = false;
  const NodeId end = copies_.index().id_end();
  const NodeId step_end = end - next_ > kNodesAStep ? next_ + kNodesAStep : end;
  for (; next_ < step_end; ++next_) {
    if (Visit(next_)) continue;
    is_queue_full_ = true;  // OnWritten() goes on at this block
    return;
  }
  if (next_ < end) return PostStep();
  is_round_over_ = true;
  if (moves_.num_write_behinds() == 0) EndRound();
}

// False: there is no room in the queue for a copy of this block.
bool Drain::Visit(NodeId id) {
  if (!copies_.index().IsLive(id) || !copies_.index().node(id).IsResident()) return true;
  for (const TierKind kind : kAllTiers) {
    if (!copies_.Has(kind) || !copies_.IsResident(id, kind) || !copies_.IsDirty(id, kind)) continue;
    const tiers::Tier* colder = copies_.ColderTier(kind);
    if (moves_.IsMovingTo(id, colder->kind())) continue;
    if (write_behind_.Start(id, kind)) {
      ++started_in_round_;
    } else if (moves_.num_write_behinds() > 0) {
      return false;
    }
  }
  const bool is_durable =
      copies_.Has(TierKind::kNvme) && copies_.state(id, TierKind::kNvme) == CopyState::kResident;
  memory_only_ += !is_durable;
  return true;
}

void Drain::OnWritten() {
  if (waiters_.empty()) return;
  if (is_round_over_) return EndRound();
  if (is_queue_full_) PostStep();
}

void Drain::EndRound() {
  if (started_in_round_ > 0) return BeginRound();
  const DrainResult result = progress();
  for (Done& done : std::exchange(waiters_, {})) done(result);
}

}  // namespace kvstore::store
