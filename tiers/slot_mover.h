// SlotMover moves one slot between host memory and the memory of one tier, checking it on the way.
// Rules for `done`, threads, bounds and Stop(): those of Tier::Write() and Tier::Read() (tier.h).
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/page_trailer.h"
#include "kvstore/base/region.h"
#include "tiers/slab_pages.h"
#include "transfer/memory/memory_mover.h"

namespace kvstore::tiers {

class SlotMover {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;
  virtual ~SlotMover() = default;

  // Require regions of identity.shape.slot_bytes() bytes that fit the place.
  virtual void Write(const SlabPlace& to, const PageIdentity& identity, ConstRegion src,
                     absl::Time deadline, Done done) = 0;
  virtual void Read(const SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
                    absl::Time deadline, Done done) = 0;
  // Reports `status` later, for operations that the tier refuses itself.
  virtual void Fail(absl::Status status, Done done) = 0;
  virtual size_t inflight_max() const = 0;
  virtual size_t in_flight() const = 0;
  virtual void Stop() = 0;
};

// For slabs in host memory: copies by CPU, on threads of its own.
class HostSlotMover final : public SlotMover {
 public:
  HostSlotMover(transfer::MemoryMover::Options options, Executor& executor, const Clock& clock)
      : mover_(std::move(options), executor, clock) {}

  void Write(const SlabPlace& to, const PageIdentity& identity, ConstRegion src,
             absl::Time deadline, Done done) override;
  void Read(const SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
            absl::Time deadline, Done done) override;
  void Fail(absl::Status status, Done done) override {
    mover_.Fail(std::move(status), std::move(done));
  }
  size_t inflight_max() const override { return mover_.inflight_max(); }
  size_t in_flight() const override { return mover_.in_flight(); }
  void Stop() override { mover_.Stop(); }

 private:
  transfer::MemoryMover mover_;
};

}  // namespace kvstore::tiers
