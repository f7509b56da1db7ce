// CudaSlotMover moves slots between host memory and CudaSlabMemory. Bytes go by the copy engines and
// are checked by CPU, in host memory: before they leave it, and after they have come back.
//
//   Write: verify the source -> copy to the device            Read: copy to the host -> accept
//
// Between the check of a Write and its copy a client of the same tenant may still change the source
// in shared memory; whoever reads the page checks it again.
//
// Threads and errors: tiers/slot_mover.h.
#pragma once

#include <memory>

#include "tiers/completion_queue.h"
#include "tiers/slot_mover.h"
#include "transfer/cuda/copy_engine.h"
#include "transfer/memory/memory_mover.h"

namespace kvstore::tiers {

class CudaSlotMover final : public SlotMover {
 public:
  static absl::StatusOr<std::unique_ptr<SlotMover>> Create(
      std::shared_ptr<transfer::CudaContext> context, size_t inflight_max, Executor& core,
      const Clock& clock);
  ~CudaSlotMover() override { CudaSlotMover::Stop(); }

  void Write(const SlabPlace& to, const PageIdentity& identity, ConstRegion src,
             absl::Time deadline, Done done) override;
  void Read(const SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
            absl::Time deadline, Done done) override;
  void Fail(absl::Status status, Done done) override;
  size_t inflight_max() const override { return inflight_max_; }
  size_t in_flight() const override { return in_flight_; }
  void Stop() override;

 private:
  CudaSlotMover(std::unique_ptr<transfer::CopyEngine> engine, size_t inflight_max, Executor& core,
                const Clock& clock);
  // Counts the operation; its end is counted when the result runs. nullptr: refused and reported.
  Done Admit(std::shared_ptr<SlabMemory> memory, Done done);
  // `next` runs on the core thread, also inside Stop().
  void Copy(transfer::CopyDirection direction, transfer::CopyPiece piece, absl::Time deadline,
            Done next);

  const std::unique_ptr<transfer::CopyEngine> engine_;
  const size_t inflight_max_;
  // Shared with tasks in the executor, which may outlive the mover.
  const std::shared_ptr<CompletionQueue> completions_;
  size_t in_flight_ = 0;
  bool is_stopped_ = false;
  transfer::MemoryMover checker_;
};

}  // namespace kvstore::tiers
