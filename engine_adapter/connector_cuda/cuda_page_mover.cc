#include "engine_adapter/connector_cuda/cuda_page_mover.h"

#include <utility>
#include <vector>

#include "engine_adapter/connector_cuda/cuda_load.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/cuda_slabs.h"
#include "transfer/cuda/device_memory.h"

namespace kvstore::engine {
namespace {

// Checking pages that are being saved must not slow down who computes.
constexpr uint32_t kSaveCheckBlocks = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPageMover>> CudaPageMover::Create(CudaPageMoverParts parts) {
  using transfer::CudaStream;
  ASSIGN_OR_RETURN(std::shared_ptr<client::DeviceSlabs> slabs,
                   client::OpenCudaSlabs(parts.context, parts.addresses));
  ASSIGN_OR_RETURN(CudaStream load,
                   CudaStream::Create(parts.context, CudaStream::Priority::kUrgent));
  ASSIGN_OR_RETURN(CudaStream check,
                   CudaStream::Create(parts.context, CudaStream::Priority::kUrgent));
  ASSIGN_OR_RETURN(CudaStream save,
                   CudaStream::Create(parts.context, CudaStream::Priority::kBackground));
  std::unique_ptr<CudaPageMover> mover(new CudaPageMover(
      std::move(parts), std::move(slabs), std::move(load), std::move(check), std::move(save)));
  RETURN_IF_ERROR(mover->WarmUp());
  return mover;
}

// One checksum: the driver loads a kernel when it is first launched, and waits for all copies in
// flight then; the first load would pay for that.
absl::Status CudaPageMover::WarmUp() {
  const auto slice_bytes = static_cast<uint32_t>(parts_.layout.slice_bytes());
  const uint64_t granularity = parts_.context->granularity();
  ASSIGN_OR_RETURN(const std::unique_ptr<transfer::DeviceMemory> slice,
                   transfer::DeviceMemory::Create(parts_.context, (slice_bytes + granularity - 1) /
                                                                      granularity * granularity));
  ASSIGN_OR_RETURN(const std::unique_ptr<ChecksumBatch> checksum,
                   parts_.make_checksums(1, slice_bytes));
  checksum->Set(0, slice->data(), 0);
  RETURN_IF_ERROR(checksum->Launch(0, 1, 1, check_stream_.get()));
  return check_stream_.Synchronize();
}

CudaPageMover::CudaPageMover(CudaPageMoverParts parts,
                             std::shared_ptr<client::DeviceSlabs> device_slabs,
                             transfer::CudaStream load_stream, transfer::CudaStream check_stream,
                             transfer::CudaStream save_stream)
    : parts_(std::move(parts)),
      device_slabs_(std::move(device_slabs)),
      load_stream_(std::move(load_stream)),
      check_stream_(std::move(check_stream)),
      save_stream_(std::move(save_stream)) {}

const std::byte* CudaPageMover::InPlace(const client::PageView& view) const {
  return reinterpret_cast<const std::byte*>(view.device_slot);
}

std::unique_ptr<PageMover::Load> CudaPageMover::StartLoad(const client::Namespace& ns,
                                                          client::Lease& lease,
                                                          std::span<LoadedBlock> blocks,
                                                          absl::Time deadline) {
  auto load = std::make_unique<CudaLoad>(*this, lease, blocks, deadline);
  load->Start(ns);
  return load;
}

absl::Status CudaPageMover::Save(const client::Namespace& ns, std::span<const FilledPage> pages,
                                 client::Reservation& reservation) {
  RETURN_IF_ERROR(parts_.context->Bind());
  const auto num_slices = static_cast<size_t>(parts_.layout.num_layers);
  const auto slice_bytes = static_cast<size_t>(parts_.layout.slice_bytes());
  const size_t num_tasks = pages.size() * num_slices;
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ChecksumBatch> checksums,
      parts_.make_checksums(num_tasks, static_cast<uint32_t>(parts_.layout.slice_bytes())));
  transfer::CopyList copies;
  for (size_t i = 0; i < pages.size(); ++i) {
    const FilledPage& page = pages[i];
    const uint64_t on_device = reservation.device_slot(page.position);
    const CUdeviceptr slot =
        on_device != 0 ? on_device : reinterpret_cast<CUdeviceptr>(reservation.slot(page.position));
    const std::vector<uint64_t> seeds = client::SliceSeeds(ns, page.hash);
    for (size_t slice = 0; slice < num_slices; ++slice) {
      const CUdeviceptr from = reinterpret_cast<CUdeviceptr>(page.page) + slice * slice_bytes;
      copies.Add(slot + slice * slice_bytes, from, slice_bytes);
      checksums->Set(i * num_slices + slice, from, seeds[slice]);
    }
  }
  {
    absl::MutexLock lock(&save_mutex_);
    absl::Status moved = save_stream_.Copy(copies);
    if (moved.ok()) moved = checksums->Launch(0, num_tasks, kSaveCheckBlocks, save_stream_.get());
    // Also after an error: what was enqueued reads the pages.
    const absl::Status done = save_stream_.Synchronize();
    RETURN_IF_ERROR(moved);
    RETURN_IF_ERROR(done);
  }
  std::vector<uint64_t> of_page(num_slices);
  for (size_t i = 0; i < pages.size(); ++i) {
    for (size_t slice = 0; slice < num_slices; ++slice) {
      of_page[slice] = checksums->result(i * num_slices + slice);
    }
    reservation.Seal(pages[i].position, of_page);
  }
  return absl::OkStatus();
}

bool CudaPageMover::IsChecked(const client::PageView& view) const {
  absl::MutexLock lock(&mutex_);
  const auto known = checked_.find(view.device_slot);
  return known != checked_.end() && known->second.generation == view.generation &&
         known->second.page_checksum == view.page_checksum;
}

void CudaPageMover::SetChecked(const client::PageView& view) {
  absl::MutexLock lock(&mutex_);
  checked_[view.device_slot] = {view.generation, view.page_checksum};
}

}  // namespace kvstore::engine
