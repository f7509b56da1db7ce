#include "tests/sim/sim_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace kvstore::sim {
namespace {

using transfer::FileDirection;
using transfer::IoRequest;
using transfer::IoResult;

constexpr size_t kSector = 512;
constexpr size_t kSlot = 4096;
constexpr size_t kUnsyncedMax = 64;  // more: the device writes the oldest out by itself

size_t WholeSectors(size_t bytes) { return bytes / kSector * kSector; }

}  // namespace

class SimDisk::Backend final : public transfer::IoBackend {
 public:
  explicit Backend(SimDisk& disk) : disk_(disk) {}
  bool Start(const IoRequest& request) override {
    disk_.Add(request);
    return true;
  }
  void Cancel(uint64_t tag) override { disk_.Cancel(tag); }
  void Flush() override {}
  void Wait(absl::Duration, std::vector<IoResult>& results) override { disk_.Collect(results); }
  void Wake() override {}
  int RegisterFile(int) override { return -1; }
  absl::StatusOr<int> RegisterBuffer(MutableRegion) override {
    return absl::UnimplementedError("simulated");
  }
  void UnregisterBuffer(int) override {}

 private:
  SimDisk& disk_;
};

std::unique_ptr<transfer::IoBackend> SimDisk::MakeBackend() {
  return std::make_unique<Backend>(*this);
}

void SimDisk::Add(const IoRequest& request) {
  Operation operation{.tag = request.tag, .direction = request.direction, .offset = request.offset};
  operation.parts.assign(request.parts, request.parts + request.num_parts);
  for (const iovec& part : operation.parts) operation.bytes += part.iov_len;
  operation.moves = operation.bytes;
  operation.when = clock_.Now() + absl::Microseconds(50) + random_.UpTo(absl::Microseconds(500));
  if (!is_draining_) AddFaults(&operation);
  ++(request.direction == FileDirection::kRead ? counts_.reads : counts_.writes);
  under_way_.push_back(std::move(operation));
}

void SimDisk::AddFaults(Operation* o) {
  const bool is_write = o->direction == FileDirection::kWrite;
  const auto happens = [this](double share) {
    if (!random_.Chance(share)) return false;
    ++counts_.faults;
    return true;
  };
  const auto some_bytes = [&] { return random_.Below(static_cast<uint32_t>(o->bytes)); };
  if (happens(faults_.late)) o->when += random_.UpTo(absl::Milliseconds(400));
  if (happens(faults_.hung)) {
    o->when += absl::Seconds(3) + random_.UpTo(absl::Seconds(3));
    o->can_cancel = false;
  }
  o->is_duplicate = happens(faults_.duplicate);
  if (happens(faults_.io_error)) {
    o->error = -EIO;
    o->moves = some_bytes();
  } else if (is_write && happens(faults_.full)) {
    o->error = -ENOSPC;
    o->moves = some_bytes();
  } else if (happens(faults_.again)) {
    o->error = random_.OneIn(2) ? -EAGAIN : -EINTR;
    o->moves = 0;
  } else if (happens(faults_.short_transfer)) {
    o->moves = random_.OneIn(8) ? some_bytes() : WholeSectors(some_bytes());
  }
  if (is_write) {
    o->is_torn = happens(faults_.torn_write);
    o->is_lost = happens(faults_.lost_write);
  } else {
    o->is_stale = happens(faults_.stale_read);
    o->is_flipped = happens(faults_.flipped_bit);
  }
  if (happens(faults_.misdirected)) {
    const auto slots = static_cast<uint32_t>((cache_.size() - o->bytes) / kSlot);
    o->offset = uint64_t{random_.Below(slots + 1)} * kSlot;
  }
}

// A cancelled operation ends soon, and most of the time with ECANCELED.
void SimDisk::Cancel(uint64_t tag) {
  for (Operation& operation : under_way_) {
    if (operation.tag != tag || !operation.can_cancel) continue;
    ++counts_.cancels;
    operation.when = std::min(operation.when, clock_.Now() + random_.UpTo(absl::Milliseconds(5)));
    if (random_.OneIn(4)) continue;  // it was too late for that: it becomes what it becomes
    operation.error = -ECANCELED;
    operation.moves = random_.Below(static_cast<uint32_t>(operation.bytes) + 1);
  }
}

void SimDisk::Collect(std::vector<IoResult>& results) {
  const absl::Time now = clock_.Now();
  std::vector<Operation> due;
  const auto is_due = [&](const Operation& o) { return is_draining_ || o.when <= now; };
  for (Operation& o : under_way_) {
    if (is_due(o)) due.push_back(o);
  }
  std::erase_if(under_way_, is_due);
  std::stable_sort(due.begin(), due.end(),
                   [](const Operation& a, const Operation& b) { return a.when < b.when; });
  for (const Operation& operation : due) {
    const int32_t result = Complete(operation);
    results.push_back({operation.tag, result});
    if (operation.is_duplicate) results.push_back({operation.tag, result});
  }
}

int32_t SimDisk::Complete(const Operation& operation) {
  if (failpoints_.is_off()) return -EIO;
  if (operation.direction == FileDirection::kWrite) {
    Write(operation, operation.moves);
    if (operation.error == 0) failpoints_.Pass(Failpoint::kAfterDataWrite);
  } else {
    Read(operation, operation.moves);
    if (operation.error == 0) failpoints_.Pass(Failpoint::kMidPromote);
  }
  return operation.error != 0 ? operation.error : static_cast<int32_t>(operation.moves);
}

void SimDisk::Write(const Operation& operation, size_t bytes) {
  if (operation.is_lost) return;
  uint64_t at = operation.offset;
  for (const iovec& part : operation.parts) {
    const size_t n = std::min(bytes, part.iov_len);
    if (n == 0) break;
    Store(at, static_cast<const std::byte*>(part.iov_base), n, operation.is_torn);
    at += n;
    bytes -= n;
  }
}

void SimDisk::Store(uint64_t offset, const std::byte* data, size_t bytes, bool is_torn) {
  for (size_t at = 0; at < bytes; at += kSector) {
    const size_t n = std::min(kSector, bytes - at);
    if (is_torn && random_.OneIn(2)) continue;
    std::memcpy(cache_.data() + offset + at, data + at, n);
  }
  unsynced_.push_back({offset,
                       {cache_.begin() + static_cast<ptrdiff_t>(offset),
                        cache_.begin() + static_cast<ptrdiff_t>(offset + bytes)}});
  if (unsynced_.size() <= kUnsyncedMax) return;
  const Unsynced& oldest = unsynced_.front();
  std::memcpy(stable_.data() + oldest.offset, oldest.bytes.data(), oldest.bytes.size());
  unsynced_.erase(unsynced_.begin());
}

void SimDisk::Read(const Operation& operation, size_t bytes) {
  const std::vector<std::byte>& from = operation.is_stale ? stable_ : cache_;
  uint64_t at = operation.offset;
  for (const iovec& part : operation.parts) {
    const size_t n = std::min(bytes, part.iov_len);
    if (n == 0) break;
    auto* to = static_cast<std::byte*>(part.iov_base);
    std::memcpy(to, from.data() + at, n);
    if (operation.is_flipped) {
      const uint32_t bit = random_.Below(static_cast<uint32_t>(n) * 8);
      to[bit / 8] ^= std::byte{static_cast<uint8_t>(1 << bit % 8)};
    }
    at += n;
    bytes -= n;
  }
}

void SimDisk::EndProcess() {
  for (const Operation& operation : under_way_) {
    if (operation.direction != FileDirection::kWrite || operation.is_lost) continue;
    if (random_.OneIn(3)) continue;
    Operation partial = operation;
    partial.is_torn = random_.OneIn(2);
    Write(partial, random_.OneIn(2) ? operation.bytes
                                    : random_.Below(static_cast<uint32_t>(operation.bytes)));
  }
  // They are still reported, as errors and without effect: the machine is off.
}

void SimDisk::LosePower() {
  const uint32_t mode = random_.Below(4);  // nothing, whole writes, sectors, or everything is lost
  for (size_t i = unsynced_.size(); i > 1; --i)
    std::swap(unsynced_[i - 1], unsynced_[random_.Below(static_cast<uint32_t>(i))]);
  for (const Unsynced& write : unsynced_) {
    const bool keeps_write = mode == 0 || (mode != 3 && random_.OneIn(2));
    for (size_t at = 0; at < write.bytes.size(); at += kSector) {
      const bool keeps = mode == 2 ? random_.OneIn(2) : keeps_write;
      if (!keeps) {
        ++counts_.lost_sectors;
        continue;
      }
      std::memcpy(stable_.data() + write.offset + at, write.bytes.data() + at,
                  std::min(kSector, write.bytes.size() - at));
    }
  }
  unsynced_.clear();
  cache_ = stable_;
}

void SimDisk::Sync() {
  for (const Unsynced& write : unsynced_)
    std::memcpy(stable_.data() + write.offset, write.bytes.data(), write.bytes.size());
  unsynced_.clear();
}

void SimDisk::Rot() {
  const uint32_t bit = random_.Below(static_cast<uint32_t>(cache_.size()) * 8);
  cache_[bit / 8] ^= std::byte{static_cast<uint8_t>(1 << bit % 8)};
  ++counts_.faults;
}

}  // namespace kvstore::sim
