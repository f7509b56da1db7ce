// A disk that lies, and the kernel in front of it: the IoBackend of a simulated NVMe tier.
//
// Bytes move when an operation completes, not when it starts, so that memory which was given up or
// reused too early shows as wrong bytes. A write reaches the device's cache; what was not synced
// may be lost, torn at 512 bytes and reordered when the power goes.
//
// Confined to the simulation's thread. Outlives the processes that use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvstore/base/clock.h"
#include "tests/sim/failpoints.h"
#include "tests/sim/sim_random.h"
#include "transfer/io_uring/io_backend.h"

namespace kvstore::sim {

// Shares of operations, 0 to 1.
struct DiskFaults {
  double io_error = 0;        // EIO, with a part of the bytes moved
  double full = 0;            // ENOSPC
  double short_transfer = 0;  // a correct prefix
  double again = 0;           // EAGAIN, EINTR
  double late = 0;            // up to 400 ms
  double hung = 0;            // 3 to 6 s, and not to be cancelled
  double duplicate = 0;       // its completion comes twice
  double torn_write = 0;      // said to be OK, some sectors are missing
  double lost_write = 0;      // said to be OK, nothing was written
  double misdirected = 0;     // another slot is written or read
  double stale_read = 0;      // an older content is read
  double flipped_bit = 0;     // in what was read
};

struct DiskCounts {
  uint64_t reads = 0, writes = 0, faults = 0, lost_sectors = 0, cancels = 0;
};

class SimDisk {
 public:
  SimDisk(size_t bytes, const Clock& clock, Failpoints& failpoints, Random& random)
      : clock_(clock), failpoints_(failpoints), random_(random), cache_(bytes), stable_(bytes) {}

  // The kernel of one process.
  std::unique_ptr<transfer::IoBackend> MakeBackend();

  void set_faults(const DiskFaults& faults) { faults_ = faults; }
  // All that is under way completes at the next look, without faults: a process that stops.
  void set_is_draining(bool is_draining) { is_draining_ = is_draining; }
  // The process is gone: of what was under way each part may or may not have happened. Requires
  // that the machine is off.
  void EndProcess();
  // Of what was not synced some is lost, torn and reordered.
  void LosePower();
  void Sync();
  // Flips a bit of what is stored.
  void Rot();
  const DiskCounts& counts() const { return counts_; }

 private:
  class Backend;
  struct Operation {
    uint64_t tag = 0;
    transfer::FileDirection direction{};
    std::vector<iovec> parts;
    uint64_t offset = 0;
    size_t bytes = 0;
    absl::Time when;
    int32_t error = 0;  // reported in place of the bytes
    size_t moves = 0;   // bytes that are moved
    bool can_cancel = true;
    bool is_duplicate = false;
    bool is_torn = false, is_lost = false, is_stale = false, is_flipped = false;
  };
  struct Unsynced {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };

  void Add(const transfer::IoRequest& request);
  void AddFaults(Operation* operation);
  void Cancel(uint64_t tag);
  void Collect(std::vector<transfer::IoResult>& results);
  int32_t Complete(const Operation& operation);
  void Write(const Operation& operation, size_t bytes);
  void Read(const Operation& operation, size_t bytes);
  void Store(uint64_t offset, const std::byte* data, size_t bytes, bool is_torn);

  const Clock& clock_;
  Failpoints& failpoints_;
  Random& random_;
  DiskFaults faults_;
  bool is_draining_ = false;
  std::vector<Operation> under_way_;
  std::vector<std::byte> cache_;   // what a read sees
  std::vector<std::byte> stable_;  // what is left after a power loss at least
  std::vector<Unsynced> unsynced_;
  DiskCounts counts_;
};

}  // namespace kvstore::sim
