// SealedMemory: anonymous memory (memfd) that other processes may map, and that none of them can
// resize.
//
// What holders of a descriptor can and cannot do (tests/tiers/shared_memory_attack_test.cc tries
// each):
// - Nobody can shrink or grow it (seals SHRINK, GROW, SEAL), so no mapping of it ever raises SIGBUS.
// - A read-only descriptor is another open file, not a duplicate: it can neither be written through
//   nor mapped writable.
// - The inode's mode is 0400: a process of another uid cannot reopen a read-only descriptor for
//   writing by way of /proc. One of the *same* uid can (an owner may chmod), and so can root:
//   sessions of the daemon's own uid are not confined to reading. What they scribble on is caught by
//   the page checksums.
// - With Seal::kFutureWrite nobody at all gets write access after creation, not even the owner: only
//   this object's mapping writes.
// Memory handed out stays allocated while any process maps it. Discard() frees it for all of them
// at once.
//
// Thread-safe after creation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::transfer {

class SealedMemory {
 public:
  enum class Seal { kResize, kFutureWrite };
  enum class HugePages { kOff, kTry };
  struct Options {
    std::string name;    // shown in /proc/PID/maps
    uint64_t bytes = 0;  // multiple of 4096
    Seal seal = Seal::kResize;
    HugePages huge_pages = HugePages::kOff;  // kTry: reserved 2 MiB pages if there are enough, else
                                             // transparent ones, else 4 KiB
  };
  // Zeroed, mapped read-write here, kept out of core dumps. Takes no memory yet, unless huge pages
  // are reserved for it. Errors: Unavailable, no descriptor or no memory; FailedPrecondition, the
  // kernel refuses memfd seals or /proc is not mounted.
  static absl::StatusOr<SealedMemory> Create(const Options& options);
  // Maps memory that Create() made with kResize in a process that has died since; `fd` is one of
  // its own descriptors (descriptor()), kept by somebody else. Errors: DataLoss, it is not such
  // memory, not of `bytes` bytes, or not this user's; those of Create().
  static absl::StatusOr<SealedMemory> Adopt(UniqueFd fd, uint64_t bytes);
  SealedMemory(SealedMemory&& other) noexcept;
  SealedMemory& operator=(SealedMemory&&) = delete;
  ~SealedMemory();

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  bool has_reserved_huge_pages() const { return has_reserved_huge_pages_; }

  // Faults memory in, so that the first writer does not pay for it. 16 MiB take about 20 ms with 4
  // KiB pages. Errors: ResourceExhausted, no memory.
  absl::Status Populate(uint64_t offset, uint64_t bytes) const;
  // Keeps it out of swap. Errors: ResourceExhausted, RLIMIT_MEMLOCK.
  absl::Status Lock(uint64_t offset, uint64_t bytes) const;
  // Frees all memory at once, whoever maps it; it reads as zeros from here on. Whoever touches it
  // again pays for the new page. Not with kFutureWrite.
  absl::Status Discard() const;

  // A descriptor for another process, opened anew (kReadOnly) or duplicated (kReadWrite).
  // Errors: PermissionDenied, kReadWrite of kFutureWrite memory; Unavailable, out of descriptors.
  absl::StatusOr<UniqueFd> Export(MemoryAccess access) const;
  // Our own descriptor, which lives as long as this object: for who keeps the memory, never for a
  // client.
  int descriptor() const { return fd_.get(); }
  // Tells this memory from any other that there was since the machine started.
  uint64_t inode() const;

 private:
  SealedMemory() = default;
  absl::Status Open(const Options& options);
  absl::Status MapAndSeal(const Options& options);

  UniqueFd fd_;  // read-write; read-only with kFutureWrite
  Seal seal_ = Seal::kResize;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  bool has_reserved_huge_pages_ = false;
};

}  // namespace kvstore::transfer
