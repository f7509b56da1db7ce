// Emptying one slab of a tier, so that its memory can go to another pool.
//
//   closed (no slot of it is handed out) -> leaves go, pass by pass -> blocks with children
//   elsewhere go -> what is held, or has to be written below first, is waited for -> free | given
//   up, reopened
//
// Leaves go first, so that what stays resident stays a prefix as far as that can be; a slab is a
// random sample of its pool, so it cannot always be.
//
// Confined to the core thread, of which a step takes at most about half a millisecond. The first
// one runs in Start(): a slab of up to 1,024 blocks that nobody holds is free when that returns.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"

namespace kvstore::store {

class SlabEviction {
 public:
  SlabEviction(TierKind kind, Copies& copies, Executor& executor, const Clock& clock)
      : kind_(kind), copies_(copies), executor_(executor), clock_(clock) {}

  // Requires: not running; a slot of `slab` is in use.
  void Start(uint32_t slab);
  bool is_running() const { return is_running_; }

 private:
  void Step();
  void PostStep();
  // True: there is another pass to make at once.
  bool BeginNextPass();
  bool TryEvict(NodeId id);
  void End();

  const TierKind kind_;
  Copies& copies_;
  Executor& executor_;
  const Clock& clock_;
  bool is_running_ = false;
  uint32_t slab_ = 0;
  uint64_t use_ = 0;  // of the slab: SlabMap::Slab::use
  absl::Time give_up_at_;
  uint32_t next_ = 0;  // slot of this pass, counted in its direction
  int passes_ = 0;     // odd ones go from the last slot to the first
  bool has_evicted_ = false;
  bool may_orphan_ = false;
};

}  // namespace kvstore::store
