// The store core: life of a block, leases, reservations, moves between tiers. Embeddable
// (`libkvstore`).
//
//            Reserve            Commit                  evict from the last tier
//   absent ----------> writing ---------> resident{tiers} -----------------------> absent
//                         | Abort / session ends   \  promote / demote
//                         v                         > moving(src -> dst): the source stays valid
//                         until the copy is committed
//                       absent
//
// One thread decides, others move bytes: a Store is a deterministic state machine confined to its
// executor (the core thread). It does no I/O, reads no clock but the injected one, takes no lock.
// Bytes move in tiers, whose completions come back to the executor.
//
// Callbacks run on the executor, exactly once unless said otherwise, and may run before the call
// returns. They must not call back into the store's destructor.
//
// Limits: StoreOptions; full means ResourceExhausted. Failure: whatever a tier reports turns into
// "not resident there", counted.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/latency_histogram.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/base/page_id.h"
#include "kvstore/base/strong_id.h"
#include "kvstore/policy/policies.h"
#include "tiers/tier.h"

namespace kvstore::store {

using tiers::TierKind;

struct StoreOptions {
  // A lease or reservation that is not renewed ends after this. Long enough to copy a 64K-token
  // prefix from a slow disk.
  absl::Duration lease_time = absl::Seconds(30);
  // For one move between tiers, queueing in the tier included.
  absl::Duration move_deadline = absl::Seconds(2);
  // Blocks known to the index, in all tiers together. The default is what its ids have room for.
  size_t blocks_max = (size_t{1} << 26) - 1;
  size_t sessions_max = 1024;
  size_t namespaces_max = 1024;
  size_t blocks_per_call_max = 65536;
  size_t leases_per_session_max = 4096;
  size_t reserved_blocks_per_session_max = 65536;
  // Of all sessions of a tenant: 4 M leased blocks take about 100 MB of bookkeeping.
  size_t leased_blocks_per_tenant_max = size_t{1} << 22;
  size_t reserved_blocks_per_tenant_max = size_t{1} << 20;
  // Tenants that were ever named since the start.
  size_t tenants_max = 65536;
  policy::PolicyOptions policy;

  // Errors: InvalidArgument naming the option.
  absl::Status Validate() const;
};

// Where the bytes of one acquired or reserved block lie. Valid while the lease or reservation is
// held; afterwards the slot's generation in shared memory tells.
struct PageLocation {
  TierKind tier{};
  PageId page;
  uint64_t page_checksum = 0;    // 0 in a reservation
  std::byte* address = nullptr;  // of the slot, in this process; null for device memory
};

struct AcquireOptions {
  // Tiers whose pages the caller can read where they are. A block in none of them is promoted to
  // DRAM.
  bool can_read_gpu = false;
  // Take no lease unless every matched block can be read where it is: FailedPrecondition otherwise.
  bool must_be_readable = false;
  // Tell of pages that are on their way up before all of their slices are there.
  bool by_slices = false;
};

// What an Acquire tells, in order: one update with `is_first`, then more as pages arrive; the last
// one has `is_last`.
struct AcquireUpdate {
  struct Ready {
    uint32_t block = 0;  // position in the hashes of the call
    TierKind from{};     // the tier that it was found in
    PageLocation location;
    // Set: only so many leading slices of the page are there yet, fewer than all. The block comes
    // again, perhaps somewhere else with fewer, until it comes without.
    std::optional<uint32_t> leading_slices = std::nullopt;
  };
  bool is_first = false;
  bool is_last = false;
  LeaseId lease;  // set in the first update when matched_blocks > 0
  uint32_t matched_blocks =
      0;  // leading blocks that are leased; shrinks when one is lost on its way up
  std::vector<Ready>
      ready;            // blocks that became readable; the first update has those that already were
  absl::Status status;  // why matched_blocks shrank; OK otherwise

  // Keeps what was said last of each block: news that wait for their reader are bounded by blocks.
  void KeepLatest();
};

enum class ReserveState : uint8_t { kReserved, kExists, kBeingWritten, kNoSpace };

struct ReserveResult {
  struct Block {
    ReserveState state{};
    PageLocation location;  // when kReserved
  };
  ReservationId reservation;  // set when at least one block is kReserved
  std::vector<Block> blocks;  // as many as hashes were given
};

struct CommitBlock {
  uint32_t block = 0;          // position in the hashes of the Reserve call
  uint64_t page_checksum = 0;  // as computed by SealSlot() / CopyIntoSlot()
};

struct MatchResult {
  uint32_t matched_blocks = 0;
  std::array<uint32_t, tiers::kNumTierKinds> by_tier{};  // hottest tier of each matched block
};

struct NamespaceRow {
  std::string name;
  Fingerprint fingerprint;
  NamespaceSpec spec;
  uint64_t epoch = 0;
  bool is_open = false;  // opened since start, not only found on disk
  std::array<uint64_t, tiers::kNumTierKinds> bytes_by_tier{};
};

// What a tenant has and may have. Bytes are slots: page, checksums, trailer, rounded up to 4 KiB.
struct TenantRow {
  struct InTier {
    TierKind kind{};
    uint64_t quota_bytes = 0;  // 0: none
    uint64_t share_bytes = 0;  // what no tenant above its own share can take away; 0 while unused
    uint64_t used_bytes = 0;   // reserved_bytes included
    uint64_t reserved_bytes = 0;  // being written, or lent for a check
    uint64_t pages = 0;           // resident
    uint64_t evicted_pages = 0;
  };
  std::string name;
  std::vector<InTier> tiers;  // those that there are
  size_t sessions = 0, leases = 0, leased_blocks = 0, reservations = 0, reserved_blocks = 0;
  size_t moves = 0;  // between tiers, waiting ones included
};
// Who set a quota: decides whether it outlives the process.
enum class QuotaLife : uint8_t {
  kDurable,  // by an operator: kept by the durable tier, if there is one
  kThisRun,  // by configuration, which says it again at the next start; overrules what was kept
};

struct BlockRow {
  BlockHash hash;
  BlockHash parent;
  uint32_t block_index = 0;
  std::array<bool, tiers::kNumTierKinds> resident{};
  uint64_t bytes = 0;
  absl::Duration age;  // since it was last used, committed or recovered
  uint32_t hits = 0;
  uint32_t leases = 0;
};

// Counters since start. A fallback or drop that nobody counts is a defect.
struct TierCounters {
  uint64_t hit_pages = 0;       // blocks acquired that were found here
  uint64_t evicted_pages = 0;   // copies removed to make room
  uint64_t promoted_pages = 0;  // copied away to a hotter tier
  uint64_t demoted_pages = 0;   // copied into this tier from a hotter one
  uint64_t move_failures = 0;
  uint64_t lost_pages = 0;  // copies dropped because a read failed or differed
  uint64_t recovered_pages = 0;
  // Pages of this tier that were checked on their way to another one, or to check them. Every
  // check ends in exactly one of the four.
  uint64_t verified_pages = 0;
  uint64_t differing_pages = 0;   // their bytes are not what was committed
  uint64_t unreadable_pages = 0;  // the device failed
  uint64_t deadline_misses = 0;   // the device was too late, reads and writes
  uint64_t reclaimed_slabs = 0;   // emptied, so that another pool could have them
};
struct StoreCounters {
  uint64_t acquires = 0, matched_blocks = 0, requested_blocks = 0;
  uint64_t reserved_blocks = 0, committed_blocks = 0, aborted_blocks = 0;
  uint64_t no_space_blocks = 0;  // Reserve answered kNoSpace
  uint64_t dropped_blocks = 0;   // last copy gone
  uint64_t leases_expired = 0, reservations_expired = 0, sessions_ended = 0;
  uint64_t reported_bad_pages = 0;  // by readers, in Release
  uint64_t skipped_writes =
      0;  // write-behind queue was full: the block stays dirty until it is about to be evicted
  uint64_t truncated_loads = 0;  // leases that lost blocks on their way up
};
struct TierRow {
  TierKind kind{};
  tiers::TierStats stats;
  tiers::TierState state{};
  tiers::BreakerState breaker{};
  TierCounters counters;
  // Of moves out of and into this tier that ended well: from their submission to the tier until
  // the core knew. Moves that wait for the tier are `waiting_moves`.
  LatencyHistogram::Snapshot load_times, write_times;
  uint64_t waiting_moves = 0;
  std::string degraded;
};
struct StoreStatus {
  std::vector<TierRow> tiers;
  StoreCounters counters;
  size_t sessions = 0, leases = 0, reservations = 0, namespaces = 0, blocks = 0,
         moves_in_flight = 0;
  bool is_recovering = false;
  bool is_draining = false;
};

// How far a drain has come.
struct DrainResult {
  uint64_t written_blocks = 0;      // copies made in colder tiers since it began
  uint64_t waiting_blocks = 0;      // copies that are queued or under way
  uint64_t memory_only_blocks = 0;  // not in the durable tier: gone with the process
};

struct VerifyResult {
  uint64_t checked = 0;
  uint64_t bad =
      0;  // differed or unreadable; these are dropped from their tier and their slots quarantined
  uint64_t repaired =
      0;  // of those, blocks of which a good copy from another tier was written back
};
enum class VerifyMode : uint8_t { kDropBad, kRepair };

class Store {
 public:
  // Hottest first; null where there is none. DRAM is required. The tiers outlive the store.
  struct Tiers {
    tiers::Tier* gpu = nullptr;
    tiers::Tier* dram = nullptr;
    tiers::DurableTier* nvme = nullptr;
  };
  Store(const StoreOptions& options, Tiers tiers, Executor& executor, const Clock& clock);
  ~Store();  // no operation may be in flight in a tier: call Tier::Stop() first

  // Begins recovery from the durable tiers; blocks become matchable as they are known. `on_finished`
  // once. Call once, first.
  void Start(absl::AnyInvocable<void(absl::Status)> on_finished);

  // --- Namespaces
  struct OpenedNamespace {
    NamespaceId id;  // of the present epoch: look it up again after a Clear()
    Fingerprint fingerprint;
    NamespaceSpec spec;
  };
  // Opens `spec` for the tenant in it under `name` (empty: the fingerprint in hex). Idempotent.
  // With a durable tier that serves, `done` runs after the namespaces on disk are known and the
  // spec is on stable storage. Errors: InvalidArgument, bad spec; AlreadyExists, the tenant's name
  // means another spec (the message names the first field that differs); ResourceExhausted,
  // namespaces_max.
  void OpenNamespace(const NamespaceSpec& spec, std::string name,
                     absl::AnyInvocable<void(absl::StatusOr<OpenedNamespace>)> done);
  // By name or fingerprint hex, among the tenant's. Errors: NotFound.
  absl::StatusOr<OpenedNamespace> FindNamespace(std::string_view tenant,
                                                std::string_view name) const;
  absl::StatusOr<OpenedNamespace> FindNamespace(std::string_view tenant,
                                                const Fingerprint& fingerprint) const;
  std::vector<NamespaceRow> ListNamespaces() const;
  // O(1), once the namespaces on disk are known: gives the namespace a new epoch; old blocks can no
  // longer be matched and are swept later. Leases on them stay valid. Errors: NotFound.
  void Clear(std::string_view tenant, const Fingerprint& fingerprint, tiers::Tier::Done done);

  // --- Sessions
  // Errors: ResourceExhausted, sessions_max (three quarters of it for one tenant), tenants_max.
  absl::StatusOr<SessionId> OpenSession(std::string_view tenant);
  // Releases all that the session holds. Unknown ids are ignored (it may have ended already).
  void CloseSession(SessionId session);

  // --- Load
  // Longest prefix that is resident anywhere, without lease or touch.
  MatchResult Match(NamespaceId ns, std::span<const BlockHash> hashes) const;
  // Longest-prefix match and lease in one step. Blocks below DRAM start moving up at once.
  // `on_update` runs one or more times; never again after Release() or CloseSession() returned.
  // Errors (in the first update, which is then the last): NotFound, session or namespace;
  // ResourceExhausted.
  void Acquire(SessionId session, NamespaceId ns, std::span<const BlockHash> hashes,
               const AcquireOptions& options, std::function<void(const AcquireUpdate&)> on_update);
  // Ends the lease. `bad_blocks`: positions whose bytes the reader found wrong; their copies in the
  // tier that was read are verified by the store and dropped if it agrees. Errors: NotFound, no
  // such lease of `session` (it may have expired).
  absl::Status Release(SessionId session, LeaseId lease, std::span<const uint32_t> bad_blocks);
  // Sets the lease's end to now + lease_time. Errors: NotFound.
  absl::Status Renew(SessionId session, LeaseId lease);

  // --- Save
  // Takes pages in `tier` (gpu or dram) for consecutive blocks of one prefix. `parent` is the hash
  // before hashes[0]; nullopt for block 0. Stops handing out pages at the first kNoSpace. A block
  // that is resident in another tier only may be reserved in this one (promotion by the client):
  // its Commit must carry the checksum that is known. Errors: FailedPrecondition, the parent is
  // neither resident nor being written (match again); NotFound; InvalidArgument, tier;
  // ResourceExhausted, too many reserved blocks.
  absl::StatusOr<ReserveResult> Reserve(SessionId session, NamespaceId ns,
                                        std::optional<BlockHash> parent, uint32_t first_block_index,
                                        std::span<const BlockHash> hashes, TierKind tier);
  // Publishes blocks: all bytes are in their slots. Blocks of the reservation may be committed in
  // several calls. Errors: NotFound, no such reservation of `session` (it may have expired);
  // Aborted, the namespace was cleared; InvalidArgument, a position that was not reserved;
  // DataLoss, checksum differs from the known one. On an error nothing of the call is published.
  absl::Status Commit(SessionId session, ReservationId reservation,
                      std::span<const CommitBlock> blocks);
  // Gives back what is not committed. Errors: NotFound.
  absl::Status Abort(SessionId session, ReservationId reservation);

  // --- Administration
  StoreStatus status() const;
  // In the order in which they were first named.
  std::vector<TenantRow> ListTenants() const;
  // Caps what the tenant may use of `tier`; 0 removes the cap. Holds at once: what is over it is
  // evicted beside other work, held blocks when they are let go. With a durable tier and kDurable,
  // `done` runs after the quota is on stable storage; it holds even if that fails. Errors:
  // InvalidArgument, no such tier; ResourceExhausted, tenants_max.
  void SetQuota(std::string_view tenant, TierKind tier, uint64_t bytes, QuotaLife life,
                tiers::Tier::Done done);
  // There is a durable tier: what it is told outlives the process.
  bool keeps_metadata() const;
  std::vector<BlockRow> List(NamespaceId ns, std::optional<TierKind> tier, size_t limit) const;
  // Removes the namespace's copies in `tier`, except last copies and blocks that are held.
  struct EvictResult {
    uint64_t blocks = 0;
    uint64_t skipped_blocks = 0;
  };
  EvictResult Evict(NamespaceId ns, TierKind tier);
  // Reads every page of `tier` (nullopt: all) back and checks it, a few at a time beside other
  // work.
  void Verify(std::optional<TierKind> tier, VerifyMode mode,
              absl::AnyInvocable<void(absl::StatusOr<VerifyResult>)> done);
  // Stops taking saves and writes what only memory holds to colder tiers; `done` runs when that is
  // done as far as it can be. Loads go on. Reservations that are open may still be committed; what
  // they publish is written at once. A second call joins the first. Errors: Cancelled, by
  // Resume().
  void Drain(absl::AnyInvocable<void(absl::StatusOr<DrainResult>)> done);
  DrainResult drain_progress() const;
  // Takes saves again, whether or not a drain has ended. Nothing if there was none.
  void Resume();

  // Programmer errors found by walking all bookkeeping. O(everything).
  absl::Status CheckInvariants() const;

 private:
  struct State;
  void OpenKnownNamespace(const NamespaceSpec& spec, std::string name,
                          absl::AnyInvocable<void(absl::StatusOr<OpenedNamespace>)> done);
  void ClearKnown(std::string_view tenant, const Fingerprint& fingerprint, tiers::Tier::Done done);

  std::unique_ptr<State> state_;
};

}  // namespace kvstore::store
