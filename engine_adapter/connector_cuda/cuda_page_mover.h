// CudaPageMover moves pages between slots of a daemon and the device of a CudaBackend, by the copy
// engines and the checksum kernel.
//
//   GPU tier    pages are used where they lie: the slabs are mapped among the back-end's addresses
//   DRAM tier   slots in shared memory, registered with the device, are copied slice-major: slice 0
//               of all blocks, then slice 1; the compute waits for the slice of its layer alone
//   NVMe        as DRAM, block by block as the daemon brings them there
//
// Every slice is checked on the device, once for each generation of a slot used in place, and before
// a result is used: Load::Check().
//
// Threads: page_mover.h. Ownership: the back-end outlives it.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/connector_cuda/cuda_streams.h"
#include "engine_adapter/llama_cuda/cuda_backend.h"
#include "engine_adapter/llama_cuda/device_memory.h"

namespace kvstore::engine {

class CudaPageMover final : public PageMover {
 public:
  // Errors: ResourceExhausted; Unavailable, the device has failed.
  static absl::StatusOr<std::unique_ptr<CudaPageMover>> Create(CudaBackend& backend);
  ~CudaPageMover() override;

  // What a client of the daemon imports and registers slabs with, for this mover to use.
  const std::shared_ptr<client::DeviceSlabs>& device_slabs() const { return device_slabs_; }

  const std::byte* InPlace(const client::PageView& view) const override;
  std::unique_ptr<Load> StartLoad(const client::Namespace& ns, client::Lease& lease,
                                  std::span<LoadedBlock> blocks, absl::Time deadline) override;
  absl::Status Save(const client::Namespace& ns, std::span<const FilledPage> pages,
                    client::Reservation& reservation) override;

 private:
  friend class CudaLoad;

  explicit CudaPageMover(CudaBackend& backend) : backend_(backend) {}
  absl::Status Open();

  // Slices of pages that move at once.
  struct Copies {
    std::vector<CUdeviceptr> to, from;
    std::vector<size_t> bytes;
    void Add(const std::byte* to, const std::byte* from, size_t bytes);
  };
  absl::Status Enqueue(Copies& copies, cudaStream_t stream);
  absl::StatusOr<PinnedMemory> TakePinned(size_t num_tasks) ABSL_LOCKS_EXCLUDED(mutex_);
  void GivePinned(PinnedMemory memory, size_t num_tasks) ABSL_LOCKS_EXCLUDED(mutex_);

  // Which pages in place were checked in which use of their slots. At most one entry a slot.
  bool IsChecked(const client::PageView& view) const ABSL_LOCKS_EXCLUDED(mutex_);
  void SetChecked(const client::PageView& view) ABSL_LOCKS_EXCLUDED(mutex_);

  CudaBackend& backend_;
  int multiprocessors_ = 0;
  std::shared_ptr<client::DeviceSlabs> device_slabs_;  // shared with clients
  CudaStream load_stream_, check_stream_, save_stream_;

  struct Checked {
    uint64_t generation = 0;
    uint64_t page_checksum = 0;
  };
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Checked> checked_ ABSL_GUARDED_BY(mutex_);  // by address
  std::vector<PinnedMemory> spare_ ABSL_GUARDED_BY(mutex_);                 // of pinned_tasks_ each
  size_t pinned_tasks_ = 0;
};

}  // namespace kvstore::engine
