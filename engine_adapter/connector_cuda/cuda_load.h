// CudaLoad brings the leading blocks of one sequence to the device: see cuda_page_mover.h.
//
//   Start()      in place: checks what was not checked before; what lies in DRAM already: all copies
//                are given to the device, slice-major, an event behind each slice
//   WaitReady()  the first time waits for blocks that the daemon still brings from colder tiers, and
//                gives the device their copies; then lets the compute stream wait for the event of
//                the layer, and the check stream take the checksums of what came
//   Check()      waits for the check stream and compares
//
// Threads: externally synchronised.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/connector_cuda/checksum_batch.h"
#include "engine_adapter/connector_cuda/cuda_page_mover.h"
#include "transfer/cuda/cuda_stream.h"

namespace kvstore::engine {

class CudaLoad final : public PageMover::Load {
 public:
  CudaLoad(CudaPageMover& mover, client::Lease& lease, std::span<LoadedBlock> blocks,
           absl::Time deadline);
  ~CudaLoad() override;

  // Once. A failure is told by WaitReady().
  void Start(const client::Namespace& ns);

  int64_t WaitReady(int64_t layer) override;
  const absl::Status& failure() const override { return failure_; }
  absl::Status Check() override;

 private:
  // One block's part in the tasks of checksums_.
  struct Place {
    client::PageView view;   // known once the block is there
    bool has_check = false;  // else it was checked before
    size_t index = 0;        // among the pages in place that are checked, or among those that move
  };

  absl::Status Prepare(const client::Namespace& ns);
  absl::Status CheckInPlace();
  absl::Status EnqueueReady(uint32_t first, bool may_wait);
  absl::Status EnqueueCopies(uint32_t first, uint32_t end);
  absl::Status RecordAll();
  absl::Status GateLayer(int64_t layer);
  size_t TaskOf(uint32_t block, size_t slice) const;

  CudaPageMover& mover_;
  client::Lease& lease_;
  const std::span<LoadedBlock> blocks_;
  const absl::Time deadline_;
  const size_t num_slices_;
  const size_t slice_bytes_;
  std::vector<Place> places_;  // [blocks]
  size_t num_in_place_ = 0;    // of those that are checked
  size_t num_moving_ = 0;
  std::unique_ptr<ChecksumBatch> checksums_;  // null: nothing to check
  std::vector<transfer::CudaEvent> arrived_;  // [slices], of the blocks that move
  uint32_t num_enqueued_ = 0;  // leading blocks that are there or given to the device
  int64_t num_good_ = 0;
  absl::Status failure_;
  bool is_working_ = false;  // the device may be reading or writing
  bool is_checked_ = false;
};

}  // namespace kvstore::engine
