#include "tiers/slot_mover.h"

#include <utility>

namespace kvstore::tiers {
namespace {

// Keeps the slab mapped until the operation has been reported.
SlotMover::Done HoldingMemory(std::shared_ptr<SlabMemory> memory, SlotMover::Done done) {
  return [memory = std::move(memory), done = std::move(done)](absl::Status status) mutable {
    done(std::move(status));
  };
}

}  // namespace

void HostSlotMover::Write(const SlabPlace& to, const PageIdentity& identity, ConstRegion src,
                          absl::Time deadline, Done done) {
  std::byte* const slot = to.memory->host_data() + to.offset;
  mover_.Copy(slot, src.data, identity, deadline, HoldingMemory(to.memory, std::move(done)));
}

void HostSlotMover::Read(const SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
                         absl::Time deadline, Done done) {
  const std::byte* const slot = from.memory->host_data() + from.offset;
  mover_.Copy(dst.data, slot, expect, deadline, HoldingMemory(from.memory, std::move(done)));
}

}  // namespace kvstore::tiers
