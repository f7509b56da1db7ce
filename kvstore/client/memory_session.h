// The client's side of the memory socket (kvstore/base/memory_socket.h): one session, and the slabs
// it has mapped.
//
// Thread-safe. A session is lost when its connection ends; what was mapped stays readable for as
// long as anything points to it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/acquire_packet.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/client/device_slab.h"

namespace kvstore::client {

// A slab and its generation table, mapped. Immutable; unmapped with its last owner (shared: leases,
// reservations and the session that cached it come and go in any order).
class MappedSlab {
 public:
  // Takes the descriptors; checks their sizes first, so that no mapping reaches past the end of its
  // file. A slab that is no sealed memfd is memory of a device, which `device_slabs` imports; null:
  // we reach none. Slabs in host memory are registered with it. Errors: DataLoss, a descriptor is not what the daemon promised;
  // ResourceExhausted, no address space or memory; Unavailable, the device fails.
  static absl::StatusOr<std::shared_ptr<const MappedSlab>> Map(
      UniqueFd slab, UniqueFd generations, uint64_t slab_bytes, MemoryAccess access,
      std::shared_ptr<DeviceSlabs> device_slabs);
  ~MappedSlab();
  MappedSlab(const MappedSlab&) = delete;
  MappedSlab& operator=(const MappedSlab&) = delete;

  uint64_t bytes() const { return bytes_; }
  // Writable exactly if the session is read-write. Null: on a device.
  std::byte* data() const { return data_; }
  const DeviceSlab* device() const { return device_.get(); }  // null: in host memory
  // The generation of the slot at `offset`, below bytes().
  uint64_t Generation(uint64_t offset) const {
    return std::atomic_ref(generations_[offset / 4096]).load(std::memory_order_acquire);
  }

 private:
  MappedSlab() = default;
  std::byte* data_ = nullptr;
  std::shared_ptr<DeviceSlabs> registered_with_;  // shared with the session, which may end before
  std::unique_ptr<DeviceSlab> device_;
  uint64_t* generations_ = nullptr;
  uint64_t bytes_ = 0;
};

class MemorySession {
 public:
  // `socket_path`: of the memory socket. Waits at most `timeout`.
  // Errors: Unavailable, with what is wrong; PermissionDenied, the uid may not connect or act for
  // `tenant`; ResourceExhausted.
  static absl::StatusOr<std::shared_ptr<MemorySession>> Open(
      const std::string& socket_path, const std::string& tenant, MemoryAccess access,
      std::shared_ptr<DeviceSlabs> device_slabs, absl::Duration timeout);
  // The same on a socket that is connected already.
  static absl::StatusOr<std::shared_ptr<MemorySession>> Start(
      UniqueFd socket, const std::string& tenant, MemoryAccess access,
      std::shared_ptr<DeviceSlabs> device_slabs, absl::Duration timeout);

  // 16 bytes, for metadata.
  const std::string& token() const { return token_; }
  uint64_t incarnation() const { return incarnation_; }
  MemoryAccess access() const { return access_; }
  // For polling for a hang-up only.
  int fd() const { return fd_.get(); }
  bool is_lost() const { return is_lost_.load(std::memory_order_acquire); }
  void MarkLost() { is_lost_.store(true, std::memory_order_release); }

  // The slab, mapped at most once a session. `tier` as on the wire of the memory socket.
  // Errors: Aborted, the daemon does not know the slab any more; Unavailable, the session is lost;
  // DeadlineExceeded.
  absl::StatusOr<std::shared_ptr<const MappedSlab>> Slab(uint32_t tier, uint32_t slab,
                                                         absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Leases a prefix all of whose blocks can be read where they are. nullopt: that is not so, or the
  // daemon cannot say; the gRPC call can. At most kAcquirePacketBlocksMax hashes.
  // Errors: Unavailable, the session is lost; DeadlineExceeded: it is lost, too.
  absl::StatusOr<std::optional<AcquireReply>> Acquire(const Fingerprint& fingerprint,
                                                      bool can_read_gpu,
                                                      std::span<const BlockHash> hashes,
                                                      absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a lease, without an answer. False: the daemon reads too slowly now; tell it otherwise.
  [[nodiscard]] bool TryRelease(uint64_t lease);

  // As Slab(), only if it is mapped already; never waits for the daemon.
  std::shared_ptr<const MappedSlab> CachedSlab(uint32_t tier, uint32_t slab)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using SlabKey = std::pair<uint32_t, uint32_t>;
  MemorySession() = default;
  absl::StatusOr<std::shared_ptr<const MappedSlab>> RequestSlab(uint32_t tier, uint32_t slab,
                                                                absl::Duration timeout);
  absl::StatusOr<std::optional<AcquireReply>> RequestAcquire(std::span<const std::byte> request,
                                                             absl::Duration timeout);
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !is_requesting_; }
  // The answer of a request that is given up may still come, and would be taken for the next
  // one's: the session is over.
  void GiveUp();

  UniqueFd fd_;
  std::string token_;
  uint64_t incarnation_ = 0;
  MemoryAccess access_ = MemoryAccess::kReadOnly;
  std::shared_ptr<DeviceSlabs> device_slabs_;  // shared with the client's other sessions
  std::atomic<bool> is_lost_{false};           // release: pairs with the acquire in is_lost()
  size_t packet_bytes_max_ = 0;                // what a request may have
  std::vector<std::byte> reply_;               // of an Acquire; of who is requesting
  absl::Mutex mutex_;
  bool is_requesting_ ABSL_GUARDED_BY(mutex_) = false;  // a request is on the socket
  std::map<SlabKey, std::shared_ptr<const MappedSlab>> slabs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::client
