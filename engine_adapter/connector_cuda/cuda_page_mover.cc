#include "engine_adapter/connector_cuda/cuda_page_mover.h"

#include <algorithm>
#include <utility>

#include "engine_adapter/connector/page_saver.h"
#include "engine_adapter/connector_cuda/checksum_batch.h"
#include "engine_adapter/connector_cuda/cuda_load.h"
#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/cuda_slabs.h"

namespace kvstore::engine {
namespace {

// Measured on an H200: the wire rate needs batches of at most that many copies.
constexpr size_t kCopiesInBatch = 256;
// Checking pages that are being saved must not slow down who computes.
constexpr uint32_t kSaveCheckBlocks = 16;

absl::StatusOr<CudaStream> MakeStream(int priority) {
  cudaStream_t stream = nullptr;
  RETURN_IF_RUNTIME_ERROR(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority),
                          "a stream");
  return CudaStream(stream);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPageMover>> CudaPageMover::Create(CudaBackend& backend) {
  std::unique_ptr<CudaPageMover> mover(new CudaPageMover(backend));
  RETURN_IF_ERROR(mover->Open());
  return mover;
}

CudaPageMover::~CudaPageMover() = default;

absl::Status CudaPageMover::Open() {
  RETURN_IF_ERROR(backend_.context()->Bind());
  RETURN_IF_RUNTIME_ERROR(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount,
                                                 backend_.context()->device()),
                          "the device");
  int least = 0, greatest = 0;
  RETURN_IF_RUNTIME_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest), "the device");
  ASSIGN_OR_RETURN(load_stream_, MakeStream(greatest));
  ASSIGN_OR_RETURN(check_stream_, MakeStream(greatest));
  ASSIGN_OR_RETURN(save_stream_, MakeStream(least));
  ASSIGN_OR_RETURN(device_slabs_, client::OpenCudaSlabs(backend_.context(), backend_.addresses()));
  const KvLayout& layout = backend_.kv_layout();
  pinned_tasks_ = static_cast<size_t>(layout.num_layers) *
                  std::max(PageSaver::kRunPagesMax,
                           static_cast<size_t>(layout.BlocksOf(backend_.config().max_positions)));
  ASSIGN_OR_RETURN(PinnedMemory first, TakePinned(pinned_tasks_));
  GivePinned(std::move(first), pinned_tasks_);
  return absl::OkStatus();
}

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
  RETURN_IF_ERROR(backend_.context()->Bind());
  const KvLayout& layout = backend_.kv_layout();
  const auto num_slices = static_cast<size_t>(layout.num_layers);
  const auto slice_bytes = static_cast<size_t>(layout.slice_bytes());
  const size_t num_tasks = pages.size() * num_slices;
  ASSIGN_OR_RETURN(PinnedMemory memory, TakePinned(num_tasks));
  ChecksumBatch checksums(memory, num_tasks, static_cast<uint32_t>(slice_bytes));
  Copies copies;
  for (size_t i = 0; i < pages.size(); ++i) {
    const FilledPage& page = pages[i];
    const uint64_t on_device = reservation.device_slot(page.position);
    const std::byte* const slot = on_device != 0 ? reinterpret_cast<const std::byte*>(on_device)
                                                 : reservation.slot(page.position);
    const std::vector<uint64_t> seeds = client::SliceSeeds(ns, page.hash);
    for (size_t slice = 0; slice < num_slices; ++slice) {
      const std::byte* const from = page.page + slice * slice_bytes;
      copies.Add(slot + slice * slice_bytes, from, slice_bytes);
      checksums.Set(i * num_slices + slice, from, seeds[slice]);
    }
  }
  absl::Status moved = Enqueue(copies, save_stream_.get());
  if (moved.ok()) moved = checksums.Launch(0, num_tasks, kSaveCheckBlocks, save_stream_.get());
  // Also after an error: what was enqueued reads the pages.
  const cudaError_t done = cudaStreamSynchronize(save_stream_.get());
  RETURN_IF_ERROR(moved);
  RETURN_IF_RUNTIME_ERROR(done, "a save");
  std::vector<uint64_t> of_page(num_slices);
  for (size_t i = 0; i < pages.size(); ++i) {
    for (size_t slice = 0; slice < num_slices; ++slice) {
      of_page[slice] = checksums.result(i * num_slices + slice);
    }
    reservation.Seal(pages[i].position, of_page);
  }
  GivePinned(std::move(memory), num_tasks);
  return absl::OkStatus();
}

void CudaPageMover::Copies::Add(const std::byte* to_data, const std::byte* from_data,
                                size_t num_bytes) {
  to.push_back(reinterpret_cast<CUdeviceptr>(to_data));
  from.push_back(reinterpret_cast<CUdeviceptr>(from_data));
  bytes.push_back(num_bytes);
}

absl::Status CudaPageMover::Enqueue(Copies& copies, cudaStream_t stream) {
  transfer::CudaContext& context = *backend_.context();
  for (size_t first = 0; first < copies.to.size(); first += kCopiesInBatch) {
    const size_t count = std::min(kCopiesInBatch, copies.to.size() - first);
    RETURN_IF_ERROR(context.Check(
        context.driver().CopyBatch(copies.to.data() + first, copies.from.data() + first,
                                   copies.bytes.data() + first, count, stream),
        "copies of pages"));
  }
  return absl::OkStatus();
}

absl::StatusOr<PinnedMemory> CudaPageMover::TakePinned(size_t num_tasks) {
  if (num_tasks <= pinned_tasks_) {
    absl::MutexLock lock(&mutex_);
    if (!spare_.empty()) {
      PinnedMemory memory = std::move(spare_.back());
      spare_.pop_back();
      return memory;
    }
  }
  return PinnedMemory::Allocate(ChecksumBatch::BytesOf(std::max(num_tasks, pinned_tasks_)));
}

void CudaPageMover::GivePinned(PinnedMemory memory, size_t num_tasks) {
  if (num_tasks > pinned_tasks_) return;
  absl::MutexLock lock(&mutex_);
  spare_.push_back(std::move(memory));
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
