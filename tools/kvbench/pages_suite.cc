// P5: pages between host and device memory by the copy engines, small fragments by a kernel, and
// what checking them costs.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/page_checksum.h"
#include "kernels/cuda/page_copy.h"
#include "kernels/page_checksum.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/device_pages.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/stopwatch.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {
namespace {

using transfer::CopyDirection;

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB;
constexpr uint64_t kSlabBytes = 256 * kMiB;
constexpr uint32_t kOperationPieces = 1024;
constexpr uint64_t kChecksumSeed = 7;

std::string SizeName(uint64_t bytes) {
  return bytes >= kMiB ? absl::StrCat(bytes / kMiB, "MiB") : absl::StrCat(bytes / kKiB, "KiB");
}

double Rate(uint64_t bytes, double seconds) { return static_cast<double>(bytes) / seconds / 1e9; }

// The pieces of a set, host slot i to the device slot that a random order gives it.
std::vector<transfer::CopyPiece> Pieces(const DevicePages& pages, CopyDirection direction,
                                        uint64_t piece_bytes) {
  const size_t count = pages.bytes() / piece_bytes;
  const std::vector<uint32_t> hosts = RandomOrder(count, 11), devices = RandomOrder(count, 12);
  std::vector<transfer::CopyPiece> pieces;
  for (size_t i = 0; i < count; ++i) {
    const CUdeviceptr host = pages.host(direction) + hosts[i] * piece_bytes;
    const CUdeviceptr device = pages.device(direction) + devices[i] * piece_bytes;
    const bool is_in = direction == CopyDirection::kToDevice;
    pieces.push_back({is_in ? device : host, is_in ? host : device, piece_bytes});
  }
  return pieces;
}

// One copy of a whole set; its destructor waits for what was started.
class RunningCopy {
 public:
  RunningCopy(DevicePages& pages, CopyDirection direction, uint64_t piece_bytes) {
    const std::vector<transfer::CopyPiece> all = Pieces(pages, direction, piece_bytes);
    for (size_t at = 0; at < all.size(); at += kOperationPieces) {
      const size_t end = std::min(all.size(), at + kOperationPieces);
      operations_.push_back({.direction = direction});
      operations_.back().pieces.assign(all.begin() + static_cast<ptrdiff_t>(at),
                                       all.begin() + static_cast<ptrdiff_t>(end));
    }
  }
  ~RunningCopy() { (void)Wait(); }
  void Start(DevicePages& pages) {
    {
      absl::MutexLock lock(&mutex_);
      left_ = operations_.size();
    }
    for (transfer::CopyOperation& operation : operations_) {
      operation.done = [this](absl::Status status) {
        absl::MutexLock lock(&mutex_);
        status_.Update(status);
        --left_;
      };
      const auto id = pages.engine().Submit(std::move(operation));
      if (id.ok()) continue;
      absl::MutexLock lock(&mutex_);
      status_.Update(id.status());
      --left_;
    }
  }
  absl::Status Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](size_t* left) { return *left == 0; }, &left_));
    return status_;
  }

 private:
  std::vector<transfer::CopyOperation> operations_;
  absl::Mutex mutex_;
  size_t left_ = 0;
  absl::Status status_;
};

// Both directions where `directions` has both. GB/s in total.
absl::StatusOr<Sample> TimeCopies(const Settings& settings, DevicePages& pages,
                                  std::vector<CopyDirection> directions, uint64_t piece_bytes) {
  Sample sample;
  for (int repeat = 0; repeat <= settings.repeats; ++repeat) {
    std::vector<std::unique_ptr<RunningCopy>> copies;
    for (const CopyDirection direction : directions) {
      copies.push_back(std::make_unique<RunningCopy>(pages, direction, piece_bytes));
    }
    const Stopwatch watch;
    for (const auto& copy : copies) copy->Start(pages);
    for (const auto& copy : copies) RETURN_IF_ERROR(copy->Wait());
    // The first one warms up.
    if (repeat > 0) sample.Add(Rate(pages.bytes() * directions.size(), watch.Seconds()));
  }
  return sample;
}

// What came back is what went in, slot by slot, after poison.
absl::Status CheckRoundTrip(DevicePages& pages, uint64_t piece_bytes) {
  pages.Poison();
  for (const CopyDirection direction : {CopyDirection::kToDevice, CopyDirection::kToHost}) {
    // In place of two device sets: what went in is read from where it lies.
    RunningCopy copy(pages, direction, piece_bytes);
    copy.Start(pages);
    RETURN_IF_ERROR(copy.Wait());
    if (direction == CopyDirection::kToDevice) RETURN_IF_ERROR(pages.MoveDeviceSet());
  }
  return pages.Compare();
}

struct Goal {
  uint64_t piece_bytes;
  double in, out, both;  // GB/s; 0: none
};

absl::Status MeasureEngine(const Settings& settings, DevicePages& pages, Report& report) {
  constexpr CopyDirection kIn = CopyDirection::kToDevice, kOut = CopyDirection::kToHost;
  const std::pair<const char*, std::vector<CopyDirection>> ways[] = {
      {"h2d", {kIn}}, {"d2h", {kOut}}, {"both", {kIn, kOut}}};
  for (const auto& [way, directions] : ways) {
    ShowProgress(absl::StrCat("copies ", way));
    ASSIGN_OR_RETURN(const double ceiling, pages.BigCopyRate(directions));
    for (const Goal goal : {Goal{64 * kKiB, 52, 50, 0}, Goal{256 * kKiB, 54, 53, 98},
                            Goal{kMiB, 54, 53, 98}, Goal{4 * kMiB, 54, 53, 98}}) {
      ASSIGN_OR_RETURN(const Sample sample,
                       TimeCopies(settings, pages, directions, goal.piece_bytes));
      Result result = MakeResult(absl::StrCat("pages/", way, "/", SizeName(goal.piece_bytes)),
                                 "GB/s", Better::kHigher, sample);
      result.ceiling = Ceiling{ceiling, "one pinned copy of the whole set"};
      const double limit = directions.size() > 1  ? goal.both
                           : directions[0] == kIn ? goal.in
                                                  : goal.out;
      if (limit > 0) result.budget = Budget{"P5", Budget::On::kValue, limit};
      report.Add(std::move(result));
    }
  }
  for (const uint64_t piece_bytes : {64 * kKiB, kMiB}) {
    RETURN_IF_ERROR(CheckRoundTrip(pages, piece_bytes));
  }
  return absl::OkStatus();
}

// Fragments below 64 KiB, by a kernel on a few thread blocks.
absl::Status MeasureFragments(const Settings& settings, DevicePages& pages, Report& report) {
  for (const CopyDirection direction : {CopyDirection::kToDevice, CopyDirection::kToHost}) {
    const char* const way = direction == CopyDirection::kToDevice ? "h2d" : "d2h";
    ShowProgress(absl::StrCat("fragments ", way));
    ASSIGN_OR_RETURN(const double ceiling, pages.BigCopyRate({direction}));
    for (const uint64_t bytes : {4 * kKiB, 16 * kKiB, 32 * kKiB}) {
      for (const uint32_t blocks : {1U, 2U, 4U}) {
        Sample sample;
        for (int repeat = 0; repeat <= settings.repeats; ++repeat) {
          ASSIGN_OR_RETURN(const double seconds,
                           pages.TimeFragments(Pieces(pages, direction, bytes), blocks));
          if (repeat > 0) sample.Add(Rate(pages.bytes(), seconds));
        }
        Result result = MakeResult(
            absl::StrCat("pages/gather/", way, "/", SizeName(bytes), "/", blocks, "-blocks"),
            "GB/s", Better::kHigher, sample);
        result.ceiling = Ceiling{ceiling, "one pinned copy of the whole set"};
        if (blocks == kernels::kCudaCopyBlocksMax) {
          result.budget = Budget{"P5", Budget::On::kValue, 50};
        }
        report.Add(std::move(result));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status MeasureDeviceChecksums(const Settings& settings, DevicePages& pages, Report& report) {
  ShowProgress("checksums on the device");
  for (const uint64_t slice_bytes : {64 * kKiB, kMiB}) {
    for (const uint32_t blocks : {1U, 4U, 8U, 1024U}) {
      Sample sample;
      for (int repeat = 0; repeat <= settings.repeats; ++repeat) {
        ASSIGN_OR_RETURN(const double seconds,
                         pages.TimeChecksums(slice_bytes, blocks, kChecksumSeed));
        if (repeat > 0) sample.Add(Rate(pages.bytes(), seconds));
      }
      report.Add(MakeResult(
          absl::StrCat("pages/checksum-gpu/", SizeName(slice_bytes), "/", blocks, "-blocks"),
          "GB/s", Better::kHigher, sample));
    }
  }
  Sample one;
  for (int repeat = 0; repeat <= 4 * settings.repeats; ++repeat) {
    ASSIGN_OR_RETURN(const double seconds, pages.TimeOneChecksum(kMiB));
    if (repeat > 0) one.Add(seconds * 1e3);
  }
  report.Add(MakeResult("pages/checksum-gpu/one-slice-1MiB", "ms", Better::kLower, one));
  return absl::OkStatus();
}

void MeasureHostChecksums(const Settings& settings, DevicePages& pages, Report& report) {
  ShowProgress("checksums on the host");
  for (const unsigned num_threads : {1U, 2U, 4U, 6U, 8U}) {
    if (num_threads > std::thread::hardware_concurrency()) break;
    Sample sample;
    for (int repeat = 0; repeat < settings.repeats; ++repeat) {
      const std::byte* const data =
          reinterpret_cast<const std::byte*>(pages.host(CopyDirection::kToDevice));
      const uint64_t share = pages.bytes() / num_threads / kMiB * kMiB;
      const Stopwatch watch;
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < num_threads; ++t) {
        threads.emplace_back([data, share, t] {
          uint64_t sum = 0;
          for (uint64_t at = 0; at < share; at += kMiB) {
            sum += kernels::Checksum(data + t * share + at, kMiB, kChecksumSeed);
          }
          volatile uint64_t sink = sum;  // so that it is not left out
          (void)sink;
        });
      }
      for (std::thread& thread : threads) thread.join();
      sample.Add(Rate(share * num_threads, watch.Seconds()));
    }
    report.Add(MakeResult(absl::StrCat("pages/checksum-cpu/", num_threads, "-threads"), "GB/s",
                          Better::kHigher, sample));
  }
}

absl::Status MeasureMemory(const Settings& settings, DevicePages& pages, Report& report) {
  Sample create, share;
  for (int repeat = 0; repeat < settings.repeats; ++repeat) {
    const Stopwatch watch;
    ASSIGN_OR_RETURN(auto memory, transfer::DeviceMemory::Create(pages.context(), kSlabBytes));
    create.Add(watch.Seconds() * 1e3);
    const Stopwatch exporting;
    ASSIGN_OR_RETURN(const UniqueFd fd, memory->Export());
    share.Add(exporting.Seconds() * 1e3);
  }
  report.Add(MakeResult("pages/slab-256MiB/create-zeroed", "ms", Better::kLower, create));
  report.Add(MakeResult("pages/slab-256MiB/export", "ms", Better::kLower, share));
  report.Add(MakeResult("pages/register-host/1GiB", "ms", Better::kLower,
                        pages.register_seconds_per_gib() * 1e3));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunPagesSuite(const Settings& settings, Report& report) {
  ShowProgress("memory");
  ASSIGN_OR_RETURN(std::unique_ptr<DevicePages> pages,
                   DevicePages::Open(settings.device, settings.set_bytes));
  report.AddNote(absl::StrCat(pages->context()->device_name(), "; sets of ",
                              settings.set_bytes / kMiB,
                              " MiB in a registered memfd and in device memory that could be "
                              "exported; random slots; round trips compared after poison"));
  RETURN_IF_ERROR(MeasureEngine(settings, *pages, report));
  RETURN_IF_ERROR(MeasureFragments(settings, *pages, report));
  RETURN_IF_ERROR(MeasureDeviceChecksums(settings, *pages, report));
  MeasureHostChecksums(settings, *pages, report);
  return MeasureMemory(settings, *pages, report);
}

}  // namespace kvstore::bench
