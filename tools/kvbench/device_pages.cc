#include "tools/kvbench/device_pages.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/page_checksum.h"
#include "kernels/cuda/page_copy.h"
#include "kernels/page_checksum.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/pinned_copy.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/stopwatch.h"
#include "transfer/cuda/loaded_driver.h"

namespace kvstore::bench {
namespace {

using transfer::CopyDirection;
using transfer::DeviceAccess;

constexpr uint64_t kTaskBytes = uint64_t{16} << 20;
constexpr int kPoison = 0xDB;
constexpr uint64_t kPartBytes = uint64_t{16} << 20;

size_t Pos(CopyDirection direction) { return static_cast<size_t>(direction); }
absl::Status Launched(cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("a kernel was refused: ", cudaGetErrorString(error)));
}

// First touch by many threads.
void FillAll(std::span<std::byte> bytes, uint64_t seed) {
  std::vector<std::thread> threads;
  const unsigned count = std::max(1U, std::thread::hardware_concurrency());
  for (unsigned t = 0; t < count; ++t) {
    threads.emplace_back([=] {
      for (uint64_t at = t * kPartBytes; at < bytes.size(); at += count * kPartBytes) {
        FillRandom(bytes.subspan(at, std::min(kPartBytes, bytes.size() - at)), seed + at);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DevicePages>> DevicePages::Open(int device, uint64_t set_bytes) {
  auto pages = absl::WrapUnique(new DevicePages());
  RETURN_IF_ERROR(pages->Prepare(device, set_bytes));
  return pages;
}

absl::Status DevicePages::Prepare(int device, uint64_t set_bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::CudaDriver> driver, transfer::LoadCudaDriver());
  ASSIGN_OR_RETURN(context_, transfer::CudaContext::Open(std::move(driver), device));
  RETURN_IF_ERROR(context_->Bind());
  bytes_ = set_bytes / (uint64_t{64} << 20) * (uint64_t{64} << 20);
  tasks_.resize(kTaskBytes);
  const auto registered = [this](std::byte* data, uint64_t bytes) {
    return context_->Check(context_->driver().RegisterHost(data, bytes, DeviceAccess::kReadWrite),
                           "registration");
  };
  double seconds = 0;
  for (uint64_t seed : {1, 2}) {
    ASSIGN_OR_RETURN(
        transfer::SealedMemory host,
        transfer::SealedMemory::Create({.name = "kvbench-pages",
                                        .bytes = bytes_,
                                        .huge_pages = transfer::SealedMemory::HugePages::kTry}));
    FillAll({host.data(), bytes_}, seed << 40);
    const Stopwatch watch;
    RETURN_IF_ERROR(registered(host.data(), bytes_));
    seconds += watch.Seconds();
    host_.push_back(std::move(host));
    ASSIGN_OR_RETURN(auto memory, transfer::DeviceMemory::Create(context_, bytes_));
    device_.push_back(std::move(memory));
  }
  register_seconds_per_gib_ = seconds / 2 / (static_cast<double>(bytes_) / (1 << 30));
  RETURN_IF_ERROR(registered(tasks_.data(), kTaskBytes));
  transfer::CudaDriver& cuda = context_->driver();
  RETURN_IF_ERROR(context_->Check(cuda.CreateStream(0, &stream_), "stream"));
  RETURN_IF_ERROR(context_->Check(cuda.CreateStream(0, &other_stream_), "stream"));
  RETURN_IF_ERROR(context_->Check(cuda.CreateEvent(&event_), "event"));
  // Sent back are random bytes, too: copies of zeros may be faster.
  CUdeviceptr dst = this->device(CopyDirection::kToHost), src = host(CopyDirection::kToHost);
  size_t bytes = bytes_;
  RETURN_IF_ERROR(context_->Check(cuda.CopyBatch(&dst, &src, &bytes, 1, stream_), "copy"));
  RETURN_IF_ERROR(Finish());
  ASSIGN_OR_RETURN(engine_,
                   transfer::CopyEngine::Create({.inflight_max = 65536}, context_, clock_));
  return absl::OkStatus();
}

DevicePages::~DevicePages() {
  if (engine_ != nullptr) engine_->Stop();
}

CUdeviceptr DevicePages::host(CopyDirection direction) const {
  return reinterpret_cast<CUdeviceptr>(host_[Pos(direction)].data());
}
CUdeviceptr DevicePages::device(CopyDirection direction) const {
  return device_[Pos(direction)]->data();
}

absl::Status DevicePages::Finish() {
  RETURN_IF_ERROR(context_->Check(context_->driver().Record(event_, stream_), "event"));
  for (;;) {
    const CUresult result = context_->driver().Query(event_);
    if (result != CUDA_ERROR_NOT_READY) return context_->Check(result, "wait");
  }
}

absl::StatusOr<double> DevicePages::BigCopyRate(const std::vector<CopyDirection>& directions) {
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const Stopwatch watch;
    for (const CopyDirection direction : directions) {
      const bool is_in = direction == CopyDirection::kToDevice;
      CUdeviceptr dst = is_in ? device(direction) : host(direction);
      CUdeviceptr src = is_in ? host(direction) : device(direction);
      size_t bytes = bytes_;
      RETURN_IF_ERROR(context_->Check(
          context_->driver().CopyBatch(&dst, &src, &bytes, 1, is_in ? stream_ : other_stream_),
          "copy"));
    }
    // The end of both: the first stream waits for the other.
    RETURN_IF_ERROR(context_->Check(context_->driver().Record(event_, other_stream_), "event"));
    RETURN_IF_ERROR(context_->Check(context_->driver().Wait(stream_, event_), "event"));
    RETURN_IF_ERROR(Finish());
    const double bytes = static_cast<double>(bytes_ * directions.size());
    best = std::max(best, bytes / watch.Seconds() / 1e9);
  }
  return best;
}

void DevicePages::Poison() {
  std::memset(host_[Pos(CopyDirection::kToHost)].data(), kPoison, bytes_);
  for (const auto& memory : device_) (void)context_->Zero(memory->data(), bytes_);
}

absl::Status DevicePages::MoveDeviceSet() {
  CUdeviceptr dst = device(CopyDirection::kToHost), src = device(CopyDirection::kToDevice);
  size_t bytes = bytes_;
  RETURN_IF_ERROR(
      context_->Check(context_->driver().CopyBatch(&dst, &src, &bytes, 1, stream_), "copy"));
  return Finish();
}

absl::Status DevicePages::Compare() const {
  const std::byte* const sent = host_[Pos(CopyDirection::kToDevice)].data();
  const std::byte* const back = host_[Pos(CopyDirection::kToHost)].data();
  if (std::memcmp(sent, back, bytes_) == 0) return absl::OkStatus();
  return absl::DataLossError("bytes that came back are not those that went in");
}

absl::StatusOr<double> DevicePages::TimeFragments(const std::vector<transfer::CopyPiece>& pieces,
                                                  uint32_t blocks) {
  const size_t most = kTaskBytes / sizeof(kernels::CudaCopyTask);
  if (pieces.size() > most) return absl::InvalidArgumentError("too many fragments for this set");
  auto* tasks = reinterpret_cast<kernels::CudaCopyTask*>(tasks_.data());
  for (size_t i = 0; i < pieces.size(); ++i) {
    tasks[i] = {reinterpret_cast<void*>(pieces[i].dst), reinterpret_cast<void*>(pieces[i].src),
                pieces[i].bytes};
  }
  RETURN_IF_ERROR(Finish());
  const Stopwatch watch;
  RETURN_IF_ERROR(
      Launched(kernels::LaunchCudaCopies(tasks, static_cast<uint32_t>(pieces.size()), blocks,
                                         reinterpret_cast<cudaStream_t>(stream_))));
  RETURN_IF_ERROR(Finish());
  return watch.Seconds();
}

absl::StatusOr<double> DevicePages::TimeChecksums(uint64_t slice_bytes, uint32_t blocks,
                                                  uint64_t seed) {
  const size_t count = bytes_ / slice_bytes;
  auto* tasks = reinterpret_cast<kernels::CudaChecksumTask*>(tasks_.data());
  auto* sums = reinterpret_cast<uint64_t*>(tasks_.data() + count * sizeof *tasks);
  // The set that was sent, in order.
  CUdeviceptr dst = device(CopyDirection::kToDevice), src = host(CopyDirection::kToDevice);
  size_t bytes = bytes_;
  RETURN_IF_ERROR(
      context_->Check(context_->driver().CopyBatch(&dst, &src, &bytes, 1, stream_), "copy"));
  for (size_t i = 0; i < count; ++i) {
    tasks[i] = {reinterpret_cast<const void*>(dst + i * slice_bytes), seed};
    sums[i] = 0;
  }
  RETURN_IF_ERROR(Finish());
  const Stopwatch watch;
  RETURN_IF_ERROR(Launched(kernels::LaunchCudaChecksums(tasks, sums, static_cast<uint32_t>(count),
                                                        static_cast<uint32_t>(slice_bytes), blocks,
                                                        reinterpret_cast<cudaStream_t>(stream_))));
  RETURN_IF_ERROR(Finish());
  const double seconds = watch.Seconds();
  for (size_t i = 0; i < count; i += count / 16) {
    const std::byte* slice = host_[Pos(CopyDirection::kToDevice)].data() + i * slice_bytes;
    if (sums[i] != kernels::Checksum(slice, slice_bytes, seed)) {
      return absl::DataLossError(absl::StrCat("checksum of slice ", i, " is not the CPU's"));
    }
  }
  return seconds;
}

absl::StatusOr<double> DevicePages::TimeOneChecksum(uint64_t slice_bytes) {
  auto* task = reinterpret_cast<kernels::CudaChecksumTask*>(tasks_.data());
  auto* sum = reinterpret_cast<uint64_t*>(tasks_.data() + 64);
  *task = {reinterpret_cast<const void*>(device(CopyDirection::kToDevice)), 1};
  RETURN_IF_ERROR(Finish());
  const Stopwatch watch;
  RETURN_IF_ERROR(
      Launched(kernels::LaunchCudaChecksums(task, sum, 1, static_cast<uint32_t>(slice_bytes), 1,
                                            reinterpret_cast<cudaStream_t>(stream_))));
  RETURN_IF_ERROR(Finish());
  return watch.Seconds();
}

absl::StatusOr<PinnedCopy> MeasurePinnedCopy(int device) {
  constexpr uint64_t kSetBytes = uint64_t{1} << 30;
  ASSIGN_OR_RETURN(const std::unique_ptr<DevicePages> pages, DevicePages::Open(device, kSetBytes));
  ASSIGN_OR_RETURN(const double rate, pages->BigCopyRate({CopyDirection::kToDevice}));
  return PinnedCopy{.gb_s = rate, .device_name = pages->context()->device_name()};
}

}  // namespace kvstore::bench
