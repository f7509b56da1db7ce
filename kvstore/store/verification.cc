#include "kvstore/store/verification.h"

#include <utility>

namespace kvstore::store {

void Verification::Check(NodeId id, TierKind kind, absl::AnyInvocable<void(absl::Status)> done) {
  if (!copies_.CanHold(id))
    return done(absl::ResourceExhaustedError("too many holds on one block"));
  copies_.Hold(id);
  const PoolId pool = copies_.PoolOf(id);
  const absl::StatusOr<PageId> scratch = room_.TakePage(TierKind::kDram, pool);
  if (!scratch.ok()) {
    copies_.Unhold(id);
    return done(scratch.status());
  }
  copies_.Lend(TierKind::kDram, pool, *scratch);
  ++in_flight_;
  tiers::Tier* dram = copies_.tier(TierKind::kDram);
  copies_.tier(kind)->Read(
      copies_.page(id, kind), copies_.IdentityOf(id), *dram->Address(*scratch),
      clock_.Now() + deadline_,
      [this, id, kind, pool, page = *scratch, done = std::move(done)](absl::Status status) mutable {
        --in_flight_;
        copies_.GiveBack(TierKind::kDram, pool, page);
        TierCounters& counters = copies_.counters(kind);
        counters.verified_pages += status.ok();
        counters.differing_pages += absl::IsDataLoss(status);
        counters.unreadable_pages += absl::IsUnavailable(status);
        counters.deadline_misses += absl::IsDeadlineExceeded(status);
        if (absl::IsDataLoss(status) && copies_.IsResident(id, kind))
          copies_.Drop(id, kind, DropReason::kLost);
        done(status);
        copies_.Unhold(id);
      });
}

void Verification::CheckAll(std::optional<TierKind> kind, VerifyMode mode, Done done) {
  if (run_ != nullptr)
    return done(absl::FailedPreconditionError("a verification is running already"));
  run_ = std::make_unique<Run>();
  run_->mode = mode;
  run_->done = std::move(done);
  for (const TierKind t : kAllTiers) {
    if (copies_.Has(t) && (!kind || *kind == t)) run_->tiers.push_back(t);
  }
  PostStep();
}

void Verification::PostStep() {
  if (run_->is_step_posted) return;
  run_->is_step_posted = true;
  executor_.Post([this] { Step(); });
}

void Verification::Step() {
  Run& run = *run_;
  run.is_step_posted = false;
  for (size_t looked_at = 0;
       run.tier < run.tiers.size() && run.failure.ok() && run.in_flight < kChecksInFlight;
       ++looked_at) {
    if (looked_at == kNodesAStep) return PostStep();
    const TierKind kind = run.tiers[run.tier];
    if (run.next >= copies_.index().id_end()) {
      if (run.in_flight > 0) return;  // tiers one after another: one disk is busy enough
      ++run.tier;
      run.next = 0;
      continue;
    }
    const NodeId id = run.next++;
    if (!copies_.index().IsLive(id) || !copies_.IsResident(id, kind)) continue;
    ++run.in_flight;
    Check(id, kind, [this, id, kind](absl::Status status) { OnChecked(id, kind, status); });
  }
  if (run.in_flight > 0 || run.is_step_posted) return;
  const std::unique_ptr<Run> finished = std::move(run_);
  if (!finished->failure.ok()) return finished->done(finished->failure);
  finished->done(finished->result);
}

void Verification::OnChecked(NodeId id, TierKind kind, const absl::Status& status) {
  Run& run = *run_;
  --run.in_flight;
  if (absl::IsDataLoss(status)) {
    ++run.result.checked;
    ++run.result.bad;
    if (run.mode == VerifyMode::kRepair) Repair(id, kind);
  } else if (status.ok()) {
    ++run.result.checked;
  } else {
    run.failure = status;
  }
  PostStep();
}

// Called while the block is still held, so that its other copies are there.
void Verification::Repair(NodeId id, TierKind kind) {
  for (const TierKind src : kAllTiers) {
    const bool has_dram_side = (src == TierKind::kDram) != (kind == TierKind::kDram);
    if (!has_dram_side || !copies_.IsResident(id, src)) continue;
    ++run_->in_flight;
    return moves_.Start(id, src, kind, MovePurpose::kWriteBehind, [this](absl::Status status) {
      --run_->in_flight;
      run_->result.repaired += status.ok();
      PostStep();
    });
  }
}

}  // namespace kvstore::store
