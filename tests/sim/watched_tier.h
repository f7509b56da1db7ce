// A DurableTier that checks what every tier promises to the store: each operation is reported once,
// not inside the call, by its deadline and a quarter of a second, and no more of them than
// inflight_max() are accepted.
//
// Confined to the simulation's thread. Failures go to `report`.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/clock.h"
#include "tiers/tier.h"

namespace kvstore::sim {

class WatchedTier final : public tiers::DurableTier {
 public:
  // `paused_until`: when the daemon last went on after it was stopped; no deadline is met earlier.
  // `may_hang`: the device ignores cancellation, so that nothing can be said about deadlines.
  WatchedTier(tiers::DurableTier& tier, const Clock& clock, const absl::Time& paused_until,
              bool may_hang, std::function<void(std::string)> report)
      : tier_(tier),
        clock_(clock),
        paused_until_(paused_until),
        may_hang_(may_hang),
        report_(std::move(report)) {}

  tiers::TierKind kind() const override { return tier_.kind(); }
  absl::Status OpenPool(PoolId pool, const tiers::PoolSpec& spec) override {
    return tier_.OpenPool(pool, spec);
  }
  absl::StatusOr<PageId> Reserve(PoolId pool) override { return tier_.Reserve(pool); }
  void Release(PageId page) override { tier_.Release(page); }
  void Quarantine(PageId page) override { tier_.Quarantine(page); }
  void Write(PageId page, const PageIdentity& identity, ConstRegion src, absl::Time deadline,
             Done done) override {
    auto watched = Watch("write", deadline, std::move(done));
    tier_.Write(page, identity, src, deadline, std::move(watched.done));
    *watched.is_inside = false;
  }
  void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
            Done done) override {
    auto watched = Watch("read", deadline, std::move(done));
    tier_.Read(page, expect, dst, deadline, std::move(watched.done));
    *watched.is_inside = false;
  }
  void ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    OnSlices on_slices, Done done) override {
    auto watched = Watch("read by slices", deadline, std::move(done));
    tier_.ReadBySlices(
        page, expect, dst, deadline,
        [this, told = std::make_shared<uint32_t>(0), inside = watched.is_inside,
         on_slices = std::move(on_slices), num_slices = expect.shape.num_slices](uint32_t ready) {
          if (*inside) report_("slices told inside the call");
          if (ready <= *told || ready > num_slices) report_("slices told out of order");
          *told = ready;
          on_slices(ready);
        },
        std::move(watched.done));
    *watched.is_inside = false;
  }
  uint64_t capacity_bytes() const override { return tier_.capacity_bytes(); }
  uint64_t FreeSlots(PoolId pool) const override { return tier_.FreeSlots(pool); }
  size_t inflight_max() const override { return tier_.inflight_max(); }
  tiers::TierStats stats() const override { return tier_.stats(); }
  tiers::TierState state() const override { return tier_.state(); }
  std::string degraded() const override { return tier_.degraded(); }
  absl::Status CheckInvariants() const override { return tier_.CheckInvariants(); }
  void Stop() override {
    is_stopping_ = true;
    tier_.Stop();
  }
  void Recover(RecoveryHooks hooks) override { tier_.Recover(std::move(hooks)); }
  void SaveMetadata(std::string key, std::string value, Done done) override {
    tier_.SaveMetadata(std::move(key), std::move(value), std::move(done));
  }
  size_t in_flight() const { return in_flight_; }

 private:
  struct Watched {
    Done done;
    std::shared_ptr<bool> is_inside;  // shared with `done`
  };
  Watched Watch(const char* what, absl::Time deadline, Done done) {
    if (++in_flight_ > 2 * tier_.inflight_max())
      report_(absl::StrCat("more operations than the tier takes: ", in_flight_));
    auto is_inside = std::make_shared<bool>(true);
    auto is_reported = std::make_shared<bool>(false);
    return {[this, what, deadline, is_inside, is_reported,
             done = std::move(done)](absl::Status status) mutable {
              if (*is_inside) report_(absl::StrCat(what, " reported inside the call"));
              if (std::exchange(*is_reported, true)) report_(absl::StrCat(what, " reported twice"));
              --in_flight_;
              const absl::Duration late = clock_.Now() - std::max(deadline, paused_until_);
              if (late > absl::Milliseconds(250) && !may_hang_ && !is_stopping_) {
                report_(absl::StrCat(what, " ended ", absl::FormatDuration(late),
                                     " after its deadline"));
              }
              done(std::move(status));
            },
            is_inside};
  }

  tiers::DurableTier& tier_;
  const Clock& clock_;
  const absl::Time& paused_until_;
  const bool may_hang_;
  const std::function<void(std::string)> report_;
  size_t in_flight_ = 0;
  bool is_stopping_ = false;
};

}  // namespace kvstore::sim
