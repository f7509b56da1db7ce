// What is behind a Lease: the columns of its blocks, filled by the Acquire stream, and the slabs
// they lie in.
//
// Thread-safe: the stream fills it on a gRPC thread, readers wait and copy on theirs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/acquire_packet.h"
#include "kvstore/client/client.h"
#include "kvstore/client/connection.h"
#include "kvstore/client/memory_session.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::client {

struct Lease::State {
  // `hashes` are those of the request.
  State(std::shared_ptr<Connection> connection, std::shared_ptr<MemorySession> session,
        const Namespace& ns, std::vector<BlockHash> hashes);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // --- The stream's side ---
  // Takes one message. Errors: Unavailable, it is not well-formed: the stream is to be given up.
  absl::Status OnMessage(const v1::AcquireResponse& message) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the answer of the memory socket: all that there will be. Errors: as OnMessage().
  absl::Status OnReply(AcquireReply reply) ABSL_LOCKS_EXCLUDED(mutex_);
  // No message will come any more. Blocks that are not ready are lost, because of `why`.
  void OnStreamEnd(absl::Status why) ABSL_LOCKS_EXCLUDED(mutex_);
  // The stream, to be cancelled with the lease; null when it has ended.
  void SetStream(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nobody waits for the first message any longer: ends the stream, unless the message has come.
  void GiveUp() ABSL_LOCKS_EXCLUDED(mutex_);
  bool is_given_up() const ABSL_LOCKS_EXCLUDED(mutex_);

  // --- The reader's side ---
  // Where a block lies, with its slab mapped.
  struct Location {
    std::shared_ptr<const MappedSlab> slab;
    uint64_t offset = 0;  // of the slot
    uint64_t generation = 0;
    uint64_t page_checksum = 0;
    Tier tier{}, found_in{};

    const std::byte* slot() const {  // null: on a device
      return slab->data() == nullptr ? nullptr : slab->data() + offset;
    }
    uint64_t device_slot() const {  // 0: in host memory
      return slab->device() == nullptr ? 0 : slab->device()->address() + offset;
    }
    bool IsCurrent() const { return slab->Generation(offset) == generation; }
  };
  uint32_t matched_blocks() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Tier> ReadyTier(uint32_t block) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until so many leading slices of the block are readable. Errors: those of
  // Lease::WaitReady().
  absl::StatusOr<Location> Wait(uint32_t block, uint32_t num_slices, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // As Wait() for the whole page, only if it would not wait and the slab is mapped.
  std::optional<Location> Now(uint32_t block) ABSL_LOCKS_EXCLUDED(mutex_);
  PageIdentity Identity(uint32_t block, const Location& location) const;
  // InvalidArgument, no page has it.
  absl::Status CheckSlice(uint32_t slice) const;
  // Aborted, the slot has changed hands. To be asked after the bytes were read.
  absl::Status CheckCurrent(uint32_t block, const Location& location) const;
  // A page whose bytes differ although its slot is still ours: the daemon is told with the release.
  void ReportBad(uint32_t block) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<Connection>
      connection;  // shared: leases may be released after the call that made them
  const std::shared_ptr<MemorySession> session;
  const Fingerprint fingerprint;
  const PageShape shape;
  const std::vector<BlockHash> hashes;

 private:
  bool IsReady(uint32_t block, uint32_t num_slices) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (columns_.tier[block] == 0) return false;
    const uint32_t leading = leading_slices_.empty() ? 0 : leading_slices_[block];
    return leading == 0 || leading >= num_slices;
  }
  absl::Status LostStatus(uint32_t block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<const MappedSlab> KnownSlab(uint32_t tier, uint32_t slab) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Location> Locate(uint32_t block, std::shared_ptr<const MappedSlab> slab) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  bool is_given_up_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_known_ ABSL_GUARDED_BY(mutex_) = false;  // the first message has come
  uint64_t lease_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t matched_blocks_ ABSL_GUARDED_BY(mutex_) = 0;
  AcquiredColumns columns_ ABSL_GUARDED_BY(mutex_);  // a tier that is 0: not ready
  // Of pages that are there in part; 0: whole, or not there. Empty until one comes in part.
  std::vector<uint32_t> leading_slices_ ABSL_GUARDED_BY(mutex_);
  std::string lost_reason_ ABSL_GUARDED_BY(mutex_);
  bool has_stream_ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status stream_status_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool is_released_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<uint32_t> bad_blocks_ ABSL_GUARDED_BY(mutex_);
  // The slabs of this lease: few, looked up once a page.
  std::vector<std::pair<std::pair<uint32_t, uint32_t>, std::shared_ptr<const MappedSlab>>> slabs_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::client
