#include "engine_adapter/connector_cuda/cuda_load.h"

#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Beside a load: 8 warps a block, one a slice of 1 MiB, outrun the link.
constexpr uint32_t kArrivalCheckBlocks = 64;

CUdeviceptr AddressOf(const std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

}  // namespace

CudaLoad::CudaLoad(CudaPageMover& mover, client::Lease& lease, std::span<LoadedBlock> blocks,
                   absl::Time deadline)
    : mover_(mover),
      lease_(lease),
      blocks_(blocks),
      deadline_(deadline),
      num_slices_(static_cast<size_t>(mover.parts_.layout.num_layers)),
      slice_bytes_(static_cast<size_t>(mover.parts_.layout.slice_bytes())),
      places_(blocks.size()) {}

CudaLoad::~CudaLoad() {
  if (!is_working_) return;
  (void)mover_.load_stream_.Synchronize();
  (void)mover_.check_stream_.Synchronize();
}

void CudaLoad::Start(const client::Namespace& ns) {
  num_good_ = static_cast<int64_t>(blocks_.size());
  failure_ = Prepare(ns);
  if (failure_.ok()) failure_ = CheckInPlace();
  if (failure_.ok()) failure_ = EnqueueReady(0, /*may_wait=*/false);
  if (!failure_.ok()) num_good_ = 0;
}

// Tasks: those in place page by page, then those that move slice by slice.
size_t CudaLoad::TaskOf(uint32_t block, size_t slice) const {
  const Place& place = places_[block];
  if (blocks_[block].is_in_place) return place.index * num_slices_ + slice;
  return num_in_place_ * num_slices_ + slice * num_moving_ + place.index;
}

absl::Status CudaLoad::Prepare(const client::Namespace& ns) {
  RETURN_IF_ERROR(mover_.parts_.context->Bind());
  for (uint32_t block = 0; block < blocks_.size(); ++block) {
    Place& place = places_[block];
    if (blocks_[block].is_in_place) {
      ASSIGN_OR_RETURN(place.view, lease_.WaitReady(block, deadline_));
      place.has_check = !mover_.IsChecked(place.view);
      if (place.has_check) place.index = num_in_place_++;
    } else {
      place.has_check = true;
      place.index = num_moving_++;
    }
  }
  const size_t num_tasks = (num_in_place_ + num_moving_) * num_slices_;
  if (num_tasks == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(checksums_,
                   mover_.parts_.make_checksums(num_tasks, static_cast<uint32_t>(slice_bytes_)));
  for (uint32_t block = 0; block < blocks_.size(); ++block) {
    if (!places_[block].has_check) continue;
    const std::vector<uint64_t> seeds = client::SliceSeeds(ns, blocks_[block].hash);
    for (size_t slice = 0; slice < num_slices_; ++slice) {
      checksums_->Set(TaskOf(block, slice), AddressOf(blocks_[block].page) + slice * slice_bytes_,
                      seeds[slice]);
    }
  }
  if (num_moving_ == 0) return absl::OkStatus();
  for (size_t slice = 0; slice < num_slices_; ++slice) {
    ASSIGN_OR_RETURN(transfer::CudaEvent event, transfer::CudaEvent::Create(mover_.parts_.context));
    arrived_.push_back(std::move(event));
  }
  return absl::OkStatus();
}

absl::Status CudaLoad::CheckInPlace() {
  if (num_in_place_ == 0) return absl::OkStatus();
  is_working_ = true;
  return checksums_->Launch(0, num_in_place_ * num_slices_, mover_.parts_.multiprocessors,
                            mover_.check_stream_.get());
}

// From block `first` on: what can be read now, or, with may_wait, all that comes.
absl::Status CudaLoad::EnqueueReady(uint32_t first, bool may_wait) {
  uint32_t end = first;
  while (end < blocks_.size()) {
    if (!blocks_[end].is_in_place && !lease_.ReadyTier(end).has_value()) {
      if (!may_wait) break;
      // Those before it go first: the link must not wait for a disk.
      RETURN_IF_ERROR(EnqueueCopies(num_enqueued_, end));
    }
    ASSIGN_OR_RETURN(places_[end].view, lease_.WaitReady(end, deadline_));
    blocks_[end].found_in = places_[end].view.found_in;
    ++end;
  }
  return EnqueueCopies(num_enqueued_, end);
}

absl::Status CudaLoad::EnqueueCopies(uint32_t first, uint32_t end) {
  const bool is_last = end == blocks_.size();
  if (first == end && !is_last) return absl::OkStatus();
  num_enqueued_ = end;
  for (size_t slice = 0; slice < num_slices_ && num_moving_ > 0; ++slice) {
    transfer::CopyList copies;
    for (uint32_t block = first; block < end; ++block) {
      if (blocks_[block].is_in_place) continue;
      const client::PageView& view = places_[block].view;
      const CUdeviceptr slot = view.slot != nullptr ? AddressOf(view.slot) : view.device_slot;
      copies.Add(AddressOf(blocks_[block].page) + slice * slice_bytes_, slot + slice * slice_bytes_,
                 slice_bytes_);
    }
    is_working_ = true;
    RETURN_IF_ERROR(mover_.load_stream_.Copy(copies));
    if (is_last) RETURN_IF_ERROR(arrived_[slice].Record(mover_.load_stream_.get()));
  }
  return absl::OkStatus();
}

// Blocks are missing at the end: what was given to the device is all that comes.
absl::Status CudaLoad::RecordAll() {
  for (transfer::CudaEvent& event : arrived_) {
    RETURN_IF_ERROR(event.Record(mover_.load_stream_.get()));
  }
  return absl::OkStatus();
}

int64_t CudaLoad::WaitReady(int64_t layer) {
  if (num_enqueued_ < num_good_) {
    const absl::Status waited = EnqueueReady(num_enqueued_, /*may_wait=*/true);
    if (!waited.ok()) {
      failure_ = waited;
      num_good_ = RecordAll().ok() ? num_enqueued_ : 0;
    }
  }
  if (num_good_ == 0) return 0;
  if (const absl::Status gated = GateLayer(layer); !gated.ok()) {
    failure_ = gated;
    num_good_ = 0;
  }
  return num_good_;
}

absl::Status CudaLoad::GateLayer(int64_t layer) {
  const auto slice = static_cast<size_t>(layer);
  size_t num_moved = 0;  // those that move lead the tasks of their slice
  for (int64_t block = 0; block < num_good_; ++block) {
    num_moved += !blocks_[static_cast<size_t>(block)].is_in_place;
  }
  if (num_moved == 0) return absl::OkStatus();
  RETURN_IF_ERROR(arrived_[slice].HoldUp(mover_.parts_.compute_stream));
  RETURN_IF_ERROR(arrived_[slice].HoldUp(mover_.check_stream_.get()));
  return checksums_->Launch((num_in_place_ * num_slices_) + slice * num_moving_, num_moved,
                            kArrivalCheckBlocks, mover_.check_stream_.get());
}

absl::Status CudaLoad::Check() {
  if (!is_checked_ && is_working_) {
    RETURN_IF_ERROR(mover_.check_stream_.Synchronize());
  }
  std::vector<uint64_t> of_page(num_slices_);
  for (uint32_t block = 0; block < num_good_; ++block) {
    const Place& place = places_[block];
    if (is_checked_ || !place.has_check) {
      if (blocks_[block].is_in_place && !lease_.IsCurrent(block))
        return absl::AbortedError("the lease was lost while its pages were in use");
      continue;
    }
    for (size_t slice = 0; slice < num_slices_; ++slice) {
      of_page[slice] = checksums_->result(TaskOf(block, slice));
    }
    RETURN_IF_ERROR(lease_.CheckPage(block, of_page, deadline_));
    if (blocks_[block].is_in_place) mover_.SetChecked(place.view);
  }
  is_checked_ = true;
  is_working_ = false;
  return absl::OkStatus();
}

}  // namespace kvstore::engine
