// When the NVMe tier stops asking its device, when it stops writing, and how it comes back.
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/nvme_tier.h"

namespace kvstore::tiers {
namespace {

using transfer::FileResult;

// A device that has work and ends none of it for this long hangs. A disk that is only slow ends
// something: 64 pages of 8 MiB take half a second at 1 GB/s.
constexpr absl::Duration kHangTime = absl::Seconds(2);
constexpr absl::Duration kLookEvery = absl::Milliseconds(250);
constexpr absl::Duration kDeviceProbeTime = absl::Seconds(1);
constexpr uint64_t kProbeBytes = 4096;
constexpr size_t kMetadataKeyBytesMax = 256;
constexpr size_t kMetadataValueBytesMax = 64 << 10;

bool IsFull(int error_number) {
  return error_number == ENOSPC || error_number == EDQUOT || error_number == EROFS;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

}  // namespace

TierState NvmeTier::state() const {
  if (!device_breaker_.is_closed()) return TierState::kFailed;
  return write_breaker_.is_closed() ? TierState::kServing : TierState::kReadOnly;
}

std::string NvmeTier::WhyNotServing() const {
  return absl::StrCat(
      "nvme: ", device_breaker_.is_closed() ? write_breaker_.reason() : device_breaker_.reason());
}

std::string NvmeTier::degraded() const {
  std::string text;
  const auto add = [&text](const std::string& part) {
    if (!part.empty()) absl::StrAppend(&text, text.empty() ? "" : "; ", part);
  };
  if (!device_breaker_.is_closed()) {
    add(absl::StrCat("breaker ", std::string(BreakerName(device_breaker_.state())), ": ",
                     device_breaker_.reason(), "; its pages are misses until it answers"));
  }
  if (!write_breaker_.is_closed()) {
    add(absl::StrCat("read-only: ", write_breaker_.reason(), "; trying again every few seconds"));
  }
  add(start_note_);
  add(index_->note());
  add(devices_.front().mover->degraded());
  return text;
}

TierStats NvmeTier::stats() const {
  TierStats stats = stats_;
  stats.used_bytes = allocator_.used_bytes();
  stats.used_pages = allocator_.used_pages();
  stats.quarantined_pages = allocator_.quarantined_pages();
  stats.breaker_openings = device_breaker_.openings();
  return stats;
}

// --- The device

// While a breaker is not closed only its probe has a say: what ends now was started before.

void NvmeTier::RecordAnswer() {
  if (device_breaker_.is_closed()) device_breaker_.RecordSuccess();
}

void NvmeTier::RecordFault(const absl::Status& status) {
  if (!device_breaker_.is_closed()) return;
  if (device_breaker_.RecordFailure(clock_.Now(), Message(status))) ScheduleDeviceProbe();
}

void NvmeTier::JudgeRead(FileResult& result) {
  stats_.deadline_misses += absl::IsDeadlineExceeded(result.status);
  if (result.status.ok() || absl::IsDataLoss(result.status)) return RecordAnswer();
  if (result.error_number == 0) return;
  RecordFault(result.status);
  // A page that cannot be read on a disk that reads others is lost; on one that reads nothing any
  // more it is as good as the disk.
  const bool is_page_bad = device_breaker_.is_closed() && !absl::IsDeadlineExceeded(result.status);
  if (is_page_bad) result.status = absl::DataLossError(Message(result.status));
}

void NvmeTier::JudgeWrite(const FileResult& result) {
  stats_.deadline_misses += absl::IsDeadlineExceeded(result.status);
  if (result.status.ok()) {
    RecordAnswer();
    if (write_breaker_.is_closed()) write_breaker_.RecordSuccess();
    return;
  }
  if (IsFull(result.error_number)) return EnterReadOnly(Message(result.status));
  if (result.error_number == 0) return;
  if (absl::IsDeadlineExceeded(result.status)) return RecordFault(result.status);
  if (!write_breaker_.is_closed()) return;
  if (write_breaker_.RecordFailure(clock_.Now(), Message(result.status))) ScheduleWriteProbe();
}

void NvmeTier::ArmWatch() {
  if (std::exchange(is_watch_armed_, true)) return;
  core_.PostAt(clock_.Now() + kLookEvery, [this, alive = is_alive_] {
    if (!*alive || is_stopped_) return;
    is_watch_armed_ = false;
    LookAtWatches();
  });
}

void NvmeTier::LookAtWatches() {
  const absl::Time now = clock_.Now();
  bool has_work = false;
  const auto is_hanging = [&](const AnswerWatch& watch) {
    const auto since = watch.WaitingSince();
    has_work |= since.has_value();
    return since.has_value() && now - *since >= kHangTime;
  };
  for (const Device& device : devices_) {
    if (!is_hanging(*device.watch)) continue;
    GiveUpDevice(absl::StrCat(device.directory->path(), " has not answered for ",
                              absl::ToInt64Seconds(kHangTime), " s"));
  }
  if (is_hanging(index_watch_)) {
    EnterReadOnly(
        absl::StrCat("the index has not answered for ", absl::ToInt64Seconds(kHangTime), " s"));
  }
  if (has_work) ArmWatch();
}

void NvmeTier::GiveUpDevice(std::string reason) {
  if (!device_breaker_.is_closed()) return;  // a probe that hangs is waited for
  device_breaker_.Trip(clock_.Now(), std::move(reason));
  ScheduleDeviceProbe();
}

void NvmeTier::ScheduleDeviceProbe() {
  core_.PostAt(device_breaker_.probe_at(), [this, alive = is_alive_] {
    if (*alive && !is_stopped_) StartDeviceProbe();
  });
}

// Reads a little from every directory. At another place each time: one bad sector must not keep a
// disk out of use.
void NvmeTier::StartDeviceProbe() {
  struct Probe {
    explicit Probe(size_t devices)
        : left(devices),
          memory(static_cast<std::byte*>(std::aligned_alloc(kProbeBytes, devices * kProbeBytes)),
                 &std::free) {}
    size_t left;
    absl::Status status;
    std::unique_ptr<std::byte, void (*)(void*)> memory;
  };
  device_breaker_.BeginProbe();
  auto probe = std::make_shared<Probe>(devices_.size());
  const uint64_t places = layout_.extents_per_dir * (layout_.extent_bytes / kProbeBytes);
  const uint64_t place = device_probes_++ * 257 % places;
  for (size_t i = 0; i < devices_.size(); ++i) {
    transfer::FileOperation read{.direction = transfer::FileDirection::kRead,
                                 .file = devices_[i].file,
                                 .offset = place * kProbeBytes,
                                 .buffer = {probe->memory.get() + i * kProbeBytes, kProbeBytes},
                                 .deadline = clock_.Now() + kDeviceProbeTime};
    read.done = [this, probe](FileResult result) {
      completions_->Post([this, probe, result = std::move(result)] {
        probe->status.Update(result.status);
        if (--probe->left == 0) FinishDeviceProbe(probe->status);
      });
    };
    // Never full: the movers have room for one more than for all pages.
    const absl::Status submitted = devices_[i].mover->Submit(std::move(read));
    if (submitted.ok()) continue;
    probe->status.Update(submitted);
    if (--probe->left == 0) completions_->Post([this, probe] { FinishDeviceProbe(probe->status); });
  }
}

void NvmeTier::FinishDeviceProbe(absl::Status status) {
  if (is_stopped_) return;
  if (status.ok()) {
    device_breaker_.RecordSuccess();
    return SaveWhatWasKept();
  }
  device_breaker_.RecordFailure(clock_.Now(), Message(status));
  ScheduleDeviceProbe();
}

// --- Writing

void NvmeTier::EnterReadOnly(std::string reason) {
  if (!write_breaker_.is_closed() || is_stopped_) return;
  write_breaker_.Trip(clock_.Now(), std::move(reason));
  ScheduleWriteProbe();
}

void NvmeTier::ScheduleWriteProbe() {
  core_.PostAt(write_breaker_.probe_at(), [this, alive = is_alive_] {
    if (!*alive || is_stopped_) return;
    write_breaker_.BeginProbe();
    index_->Probe([this](absl::Status status) {
      // Also on the index thread: it may block, and nothing else has to happen meanwhile.
      for (Device& device : devices_) {
        if (status.ok()) status = device.directory->ProbeWrite();
      }
      completions_->Post([this, status] { FinishWriteProbe(status); });
    });
  });
}

void NvmeTier::FinishWriteProbe(absl::Status status) {
  if (is_stopped_) return;
  if (!status.ok()) {
    write_breaker_.RecordFailure(clock_.Now(), Message(status));
    return ScheduleWriteProbe();
  }
  write_breaker_.RecordSuccess();
  SaveWhatWasKept();
}

// --- Metadata

void NvmeTier::SaveMetadata(std::string key, std::string value, Done done) {
  if (is_stopped_) return Fail(std::move(done), absl::UnavailableError("nvme: stopped"));
  if (key.empty() || key.size() > kMetadataKeyBytesMax || value.size() > kMetadataValueBytesMax) {
    return Fail(std::move(done),
                absl::InvalidArgumentError(absl::StrCat(
                    "nvme: metadata of ", key.size(), " and ", value.size(), " bytes; at most ",
                    kMetadataKeyBytesMax, " and ", kMetadataValueBytesMax)));
  }
  if (state() != TierState::kServing) {
    KeepForLater(std::move(key), std::move(value));
    return Fail(std::move(done), absl::UnavailableError(WhyNotServing()));
  }
  index_watch_.Began(clock_.Now());
  ArmWatch();
  index_->PutMetadata(
      key, value, [this, key, value, done = std::move(done)](absl::Status status) mutable {
        index_watch_.Ended(clock_.Now(), true);
        completions_->Post([this, status, key = std::move(key), value = std::move(value),
                            done = std::move(done)]() mutable {
          if (status.ok()) {
            unsaved_metadata_.erase(key);  // an older value that failed
          } else {
            KeepForLater(std::move(key), std::move(value));
            EnterReadOnly(Message(status));
          }
          done(std::move(status));
        });
      });
}

void NvmeTier::KeepForLater(std::string key, std::string value) {
  unsaved_metadata_.insert_or_assign(std::move(key), std::move(value));
}

void NvmeTier::SaveWhatWasKept() {
  if (state() != TierState::kServing) return;
  if (encryption_ != nullptr && queued_secrets_ < encryption_->version()) {
    SaveSecrets([](absl::Status) {});
  }
  for (auto& [key, value] : std::exchange(unsaved_metadata_, {})) {
    SaveMetadata(key, value, [](absl::Status) {});
  }
}

}  // namespace kvstore::tiers
