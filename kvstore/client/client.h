// What other processes link: sessions, shared-memory mapping, match / acquire / reserve / commit,
// inline put and get.
//
// A Client keeps one gRPC channel and, on a Unix socket target, one memory-socket session. It
// connects in the background, reconnects by itself with backoff after the daemon went away (a new
// session: leases and mappings of the old one are gone), and never blocks a call past its deadline.
// Every failure is a status within the deadline: Unavailable while there is no daemon.
//
// Threads: thread-safe. Asynchronous calls run `done` exactly once on a client thread; it must
// not block.
// Ownership: leases and reservations are RAII objects that must not outlive the client. Mapped
// memory lives as long as anything points into it, also after the daemon died: reading it then is
// safe and its generation check fails.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/hash_chain.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/base/page_id.h"
#include "kvstore/base/page_trailer.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/device_slab.h"

namespace kvstore::client {

// As tiers::TierKind, which other processes need not know: hottest first.
enum class Tier : uint8_t { kGpu = 0, kDram = 1, kNvme = 2 };
inline constexpr size_t kNumTiers = 3;
const char* TierName(Tier tier);

struct ClientOptions {
  std::string target;  // "unix:PATH" or "tcp:HOST:PORT" (no shared memory there)
  std::string tenant;  // empty: the caller's own
  std::optional<TlsFiles> tls = std::nullopt;      // of a tcp target
  MemoryAccess access = MemoryAccess::kReadWrite;  // read-only clients cannot Reserve
  // Shared with the slabs that it imports. Without it pages in the memory of a GPU cannot be reached:
  // they are misses, and cannot be reserved.
  std::shared_ptr<DeviceSlabs> device_slabs = nullptr;
  absl::Duration deadline = absl::Seconds(2);        // of a call that names none
  absl::Duration bulk_deadline = absl::Seconds(60);  // of inline Put and Get
};

// An opened namespace: what hashing and page arithmetic need. Immutable value.
struct Namespace {
  std::string name;
  Fingerprint fingerprint;
  NamespaceSpec spec;
  // Hashes of the whole blocks of `tokens`.
  std::vector<BlockHash> Hash(std::span<const uint32_t> tokens) const;
  // For a conversation that grows: hashes only what is new in each prompt.
  HashChain Chain() const;
};

struct Match {
  uint32_t matched_blocks = 0;
  uint64_t matched_tokens = 0;
  std::array<uint64_t, kNumTiers> by_tier{};
  uint64_t page_bytes = 0;
};

// Seeds of the XXH3-64 checksums of a block's slices, [num_slices]: for whoever takes checksums on a
// device (Lease::CheckPage, Reservation::Seal).
std::vector<uint64_t> SliceSeeds(const Namespace& ns, const BlockHash& hash);

// One leased page that can be read where it is.
struct PageView {
  const std::byte* slot = nullptr;  // page, then trailer (base/page_trailer.h); null: on a device
  uint64_t device_slot = 0;         // its address there; 0: in host memory
  Tier tier{};                      // where it lies
  Tier found_in{};                  // where it was when it was asked for
  uint64_t page_checksum = 0;
  uint64_t generation = 0;  // of the slot
};

// The hottest tier whose pages the caller reads where they are. kGpu: the session maps the GPU
// pool.
enum class HottestTier : uint8_t { kDram, kGpu };

// What a lease tells of pages that are on their way up: when they are whole, or of each slice. By
// slices, large pages of one Acquire come up together, their first slices first, so that an engine
// can begin with its first layer; the last of them is there no earlier, a single one a little later.
enum class Readiness : uint8_t { kByBlock, kBySlice };

struct AcquireOptions {
  // Not explicit: mostly the tier is all that there is to say.
  AcquireOptions(HottestTier hottest_tier, Readiness told = Readiness::kByBlock)
      : hottest(hottest_tier), readiness(told) {}
  HottestTier hottest;
  Readiness readiness;
};

class Client;

// A leased prefix. Movable; Release() or destruction ends the lease. Thread-safe for reading; the
// client renews it until it is released.
class Lease {
 public:
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;
  ~Lease();  // Release() without waiting

  // Leading blocks that are, or will be, readable. Shrinks when a block is lost on its way up.
  uint32_t matched_blocks() const;
  // The tier of `block` if it can be read now. Never waits.
  std::optional<Tier> ReadyTier(uint32_t block) const;
  // Waits until `block` can be read. Errors: DataLoss / Unavailable, the block was lost: use the
  // prefix before it; DeadlineExceeded.
  absl::StatusOr<PageView> WaitReady(uint32_t block, absl::Time deadline);
  // Waits until CopySlice() need not, which may be before the whole page is there
  // (Readiness::kBySlice). Such a page may still be lost and come again elsewhere: it is not used in
  // place. Errors: as WaitReady; InvalidArgument, no such slice.
  absl::Status WaitSlice(uint32_t block, uint32_t slice, absl::Time deadline);
  // Copies the page of `block` into `page` (spec.shape.page_bytes() bytes) and checks its bytes
  // and, afterwards, that the slot still was ours. On an error `page` holds garbage: treat the
  // block as a miss; it has been reported to the daemon. Errors: as WaitReady; DataLoss, bytes
  // differ; Aborted, the lease was lost before the copy ended.
  absl::Status CopyPage(uint32_t block, std::byte* page, absl::Time deadline);
  // As CopyPage for one slice, for which it waits as WaitSlice() does.
  absl::Status CopySlice(uint32_t block, uint32_t slice, std::byte* out, absl::Time deadline);
  // Checks all bytes of a page in place, then its generation. For pages used where they are (GPU
  // tier).
  absl::Status VerifyPage(uint32_t block, absl::Time deadline);
  // As VerifyPage for bytes that a device has copied, or read in place: `slice_checksums`,
  // [num_slices], were taken over them there.
  absl::Status CheckPage(uint32_t block, std::span<const uint64_t> slice_checksums,
                         absl::Time deadline);
  // True while the slot of `block` still has the generation that was leased: to be asked after
  // using bytes in place.
  bool IsCurrent(uint32_t block) const;
  void Release();

  struct State;  // opaque

 private:
  friend class Client;
  explicit Lease(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

// Reserved pages of consecutive blocks. Movable; destruction aborts what is not committed.
class Reservation {
 public:
  enum class BlockState : uint8_t { kReserved, kExists, kBeingWritten, kNoSpace };

  Reservation(Reservation&&) noexcept;
  Reservation& operator=(Reservation&&) noexcept;
  ~Reservation();

  size_t num_blocks() const;
  BlockState state(size_t block) const;
  // Writable slot of a kReserved block: fill its page bytes in place. Null for other states, and
  // for slots on a device.
  std::byte* slot(size_t block) const;
  // Address of a kReserved block's slot on its device; 0 for others.
  uint64_t device_slot(size_t block) const;
  // Copies `page` into the slot and seals it with its checksums. A slot on a device that fails
  // stays unfilled: Commit() says so.
  void Fill(size_t block, const std::byte* page);
  // Seals page bytes that were written in place. The bytes must not change afterwards.
  void Seal(size_t block);
  // As Seal(), where a device wrote the bytes and took their checksums, [num_slices].
  void Seal(size_t block, std::span<const uint64_t> slice_checksums);
  // Publishes the filled or sealed blocks among `blocks` (positions). Errors: NotFound / Aborted,
  // the reservation is gone: the save is skipped, nothing was published; InvalidArgument, a block
  // was neither filled nor sealed.
  absl::Status Commit(std::span<const uint32_t> blocks, absl::Time deadline);
  absl::Status CommitAll(absl::Time deadline);
  void Abort();

  struct State;  // opaque

 private:
  friend class Client;
  explicit Reservation(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

struct ReserveRequest {
  std::optional<BlockHash> parent;  // nullopt for block 0
  uint32_t first_block_index = 0;
  std::span<const BlockHash> hashes;
  Tier tier = Tier::kDram;
};

struct PutResult {
  uint32_t blocks = 0, stored_blocks = 0, existing_blocks = 0;
};
struct GetResult {
  Match match;                    // as found
  uint32_t delivered_blocks = 0;  // whole pages that were written out; less than matched_blocks:
                                  // the rest was lost on its way
};

class Client {
 public:
  // Errors: as MakeChannel(). Does not wait for the daemon.
  static absl::StatusOr<std::unique_ptr<Client>> Create(ClientOptions options);
  ~Client();  // cancels what is in flight; its `done` callbacks run with Cancelled before this
              // returns

  // Waits until the daemon answers. Errors: Unavailable, with what is wrong (no socket, refused,
  // not allowed, other version).
  absl::Status WaitConnected(absl::Time deadline);
  // True on a Unix socket with a session: Acquire and Reserve work.
  bool has_shared_memory() const;

  // Blocking form. Deadlines are absl::Now() plus a duration; InfiniteFuture means the option's.
  absl::StatusOr<Namespace> Open(const std::string& name, const NamespaceSpec& spec,
                                 absl::Time deadline = absl::InfiniteFuture());
  // A namespace that was opened before, by name or fingerprint in hex. Errors: NotFound.
  absl::StatusOr<Namespace> Find(const std::string& name,
                                 absl::Time deadline = absl::InfiniteFuture());
  absl::StatusOr<Match> MatchPrefix(const Namespace& ns, std::span<const BlockHash> hashes,
                                    absl::Time deadline = absl::InfiniteFuture());
  // Returns when the match is known; pages may still be on their way (Lease::WaitReady).
  absl::StatusOr<Lease> Acquire(const Namespace& ns, std::span<const BlockHash> hashes,
                                AcquireOptions options,
                                absl::Time deadline = absl::InfiniteFuture());
  absl::StatusOr<Reservation> Reserve(const Namespace& ns, const ReserveRequest& request,
                                      absl::Time deadline = absl::InfiniteFuture());
  absl::Status Clear(const Namespace& ns, absl::Time deadline = absl::InfiniteFuture());
  // `pages`: hashes.size() pages one after another. Through shared memory where there is some, else
  // inline.
  absl::StatusOr<PutResult> Put(const Namespace& ns, std::span<const BlockHash> hashes,
                                std::span<const std::byte> pages,
                                absl::Time deadline = absl::InfiniteFuture());
  // Longest stored prefix into `pages` (room for hashes.size() pages).
  absl::StatusOr<GetResult> Get(const Namespace& ns, std::span<const BlockHash> hashes,
                                std::span<std::byte> pages,
                                absl::Time deadline = absl::InfiniteFuture());

  // Asynchronous form.
  void AcquireAsync(const Namespace& ns, std::vector<BlockHash> hashes, AcquireOptions options,
                    absl::Time deadline, absl::AnyInvocable<void(absl::StatusOr<Lease>)> done);
  void ReserveAsync(const Namespace& ns, const ReserveRequest& request, absl::Time deadline,
                    absl::AnyInvocable<void(absl::StatusOr<Reservation>)> done);

 private:
  Client();
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace kvstore::client
