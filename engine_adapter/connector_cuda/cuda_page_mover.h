// CudaPageMover moves pages between slots of a daemon and the device that a back-end computes on, by
// the copy engines and the checksum kernel.
//
//   GPU tier    pages are used where they lie: the slabs are mapped among the back-end's addresses
//   DRAM tier   slots in shared memory, registered with the device, are copied slice-major: slice 0
//               of all blocks, then slice 1; the compute waits for the slice of its layer alone
//   NVMe        as DRAM, block by block as the daemon brings them there
//
// Every slice is checked on the device, those used in place once for each generation of their slot;
// before a result is used: Load::Check().
//
// Threads: page_mover.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/connector_cuda/checksum_batch.h"
#include "engine_adapter/paging/kv_layout.h"
#include "transfer/cuda/address_range.h"
#include "transfer/cuda/cuda_context.h"
#include "transfer/cuda/cuda_stream.h"

namespace kvstore::engine {

// Of a back-end on a device.
struct CudaPageMoverParts {
  std::shared_ptr<transfer::CudaContext> context;
  std::shared_ptr<transfer::AddressRange> addresses;  // of all pages that it reads
  CUstream compute_stream = nullptr;                  // outlives the mover
  KvLayout layout;
  uint32_t multiprocessors = 1;
  MakeChecksumBatch make_checksums;
};

class CudaPageMover final : public PageMover {
 public:
  // Errors: ResourceExhausted; Unavailable, the device has failed.
  static absl::StatusOr<std::unique_ptr<CudaPageMover>> Create(CudaPageMoverParts parts);

  // What a client of the daemon imports and registers slabs with, for this mover to use.
  const std::shared_ptr<client::DeviceSlabs>& device_slabs() const { return device_slabs_; }

  const std::byte* InPlace(const client::PageView& view) const override;
  std::unique_ptr<Load> StartLoad(const client::Namespace& ns, client::Lease& lease,
                                  std::span<LoadedBlock> blocks, absl::Time deadline) override;
  absl::Status Save(const client::Namespace& ns, std::span<const FilledPage> pages,
                    client::Reservation& reservation) override ABSL_LOCKS_EXCLUDED(save_mutex_);

 private:
  friend class CudaLoad;

  CudaPageMover(CudaPageMoverParts parts, std::shared_ptr<client::DeviceSlabs> device_slabs,
                transfer::CudaStream load_stream, transfer::CudaStream check_stream,
                transfer::CudaStream save_stream);
  absl::Status WarmUp();

  // Which pages in place were checked in which use of their slots. At most one entry a slot.
  bool IsChecked(const client::PageView& view) const ABSL_LOCKS_EXCLUDED(mutex_);
  void SetChecked(const client::PageView& view) ABSL_LOCKS_EXCLUDED(mutex_);

  const CudaPageMoverParts parts_;
  const std::shared_ptr<client::DeviceSlabs> device_slabs_;  // shared with clients
  const transfer::CudaStream load_stream_, check_stream_, save_stream_;
  absl::Mutex save_mutex_;  // one of the savers at a time: one waits for its own copies

  struct Checked {
    uint64_t generation = 0;
    uint64_t page_checksum = 0;
  };
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Checked> checked_ ABSL_GUARDED_BY(mutex_);  // by address
};

}  // namespace kvstore::engine
