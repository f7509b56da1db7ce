// A Tier stores pages of one latency class. It knows bytes, slots and identities; it does not know
// tokens, prefixes, leases or policy.
//
// Memory in the middle: bytes move between tiers only through host memory that is registered with
// both, so every Write() and Read() has host memory on its other side (GPU <-> DRAM slot, NVMe <->
// DRAM slot). GPU and NVMe never meet.
//
// Threads: confined to the core thread, unless said otherwise. `done` callbacks are posted to the
// core executor given at creation, run exactly once, also on failure and at shutdown, and never
// inside the call that started the operation.
// Limits: at most inflight_max() operations; beyond that Write() and Read() report
// ResourceExhausted through `done`, they never block.
// Failure: a tier reports an operation once, with the exact cause. It never retries as success,
// and never returns bytes that do not match `expect`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/base/page_id.h"
#include "kvstore/base/page_trailer.h"
#include "kvstore/base/region.h"
#include "kvstore/base/strong_id.h"
#include "tiers/breaker.h"

namespace kvstore::tiers {

// Hottest first; the order is meaning. On the wire (kvstore.v1.Tier is this plus one): do not
// renumber.
enum class TierKind : uint8_t { kGpu = 0, kDram = 1, kNvme = 2 };
inline constexpr size_t kNumTierKinds = 3;
std::string_view TierName(TierKind kind);  // "gpu", "dram", "nvme"

// What a pool is: pages of one tenant and one slot size. Slabs belong to one pool at a time, and to
// one tenant for ever.
struct PoolSpec {
  std::string tenant;
  uint64_t slot_bytes = 0;  // multiple of 4096
};

struct TierStats {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;  // slots in use x their slot size
  uint64_t used_pages = 0;
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t in_flight = 0;
  uint64_t quarantined_pages =
      0;                     // slots kept out of use because their content or device misbehaved
  uint64_t read_errors = 0;  // I/O errors and deadline misses
  uint64_t write_errors = 0;
  uint64_t checksum_errors = 0;
  uint64_t deadline_misses = 0;   // of both kinds of errors above, those that came too late
  uint64_t breaker_openings = 0;  // times that the device was given up until it answered again
};

// kServing; kReadOnly: full or failing disk, existing pages may be read; kFailed: nothing works
// now, its pages are misses. A tier leaves the last two by itself, once its device answers; one that
// has called on_lost stays failed until the daemon restarts.
enum class TierState : uint8_t { kServing, kReadOnly, kFailed };

// A page that a durable tier found at start.
struct RecoveredPage {
  PageId page;
  PageIdentity identity;
};

class Durable;

class Tier {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;

  virtual ~Tier() = default;
  virtual TierKind kind() const = 0;

  // Pools are known before pages are reserved in them. Idempotent for the same spec.
  // Errors: InvalidArgument, the slot size is 0, unaligned, or larger than a slab of this tier.
  virtual absl::Status OpenPool(PoolId pool, const PoolSpec& spec) = 0;

  // Takes a free slot of `pool`, from its slabs or from a free slab. The caller owns it until
  // Release(). Never evicts, never blocks. Errors: ResourceExhausted, no slot is free; Unavailable,
  // the tier is not serving.
  virtual absl::StatusOr<PageId> Reserve(PoolId pool) = 0;

  // Gives the slot back; its content is gone for every reader from here on (its generation changes,
  // durable records are removed before the slot is handed out again). Requires: no operation of the
  // caller is in flight on it.
  virtual void Release(PageId page) = 0;

  // As Release(), but the slot is not used again in this run: its memory or disk range is suspect.
  virtual void Quarantine(PageId page) = 0;

  // Hands out no slot of `slab` from here on, until it was free once, or is reopened: it is being
  // emptied for another pool. A hint: a tier may ignore it. Requires: a slot of it is in use.
  virtual void CloseSlab(uint32_t /*slab*/) {}
  virtual void ReopenSlab(uint32_t /*slab*/) {}

  // Copies one slot (`src.bytes` = identity.shape.slot_bytes()) into `page`. On OK the page can be
  // read back; a durable tier has made it recoverable after a crash of the process (not after a
  // power loss: then it may be missing, never wrong). The slice checksums in the source slot are
  // checked against identity.page_checksum and the slices against them. Requires: `page` is
  // reserved; `src` stays valid and unchanged until `done`. Errors: DataLoss, source does not match
  // `identity`; Unavailable / DeadlineExceeded; ResourceExhausted.
  virtual void Write(PageId page, const PageIdentity& identity, ConstRegion src,
                     absl::Time deadline, Done done) = 0;

  // Copies the slot into `dst` (trailer included) and checks identity and all slices against
  // `expect`. Requires: `page` was written; `dst.bytes` = expect.shape.slot_bytes(), valid until
  // `done`. Errors: DataLoss, this page is lost: its content is not `expect`, or the device cannot
  // read it while it reads others; Unavailable / DeadlineExceeded, the device does not answer now
  // or too late: the page may be as good as ever, and the copy is to be kept; ResourceExhausted.
  virtual void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    Done done) = 0;

  // As Read(), and says on the way, where that pays, how many leading slices of `dst` are there and
  // checked: `on_slices` with a rising count, all of them last or not at all, on the core executor
  // and before `done`. Reads that began together advance together, slice by slice.
  using OnSlices = std::function<void(uint32_t ready_slices)>;
  virtual void ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst,
                            absl::Time deadline, OnSlices /*on_slices*/, Done done) {
    Read(page, expect, dst, deadline, std::move(done));
  }

  // The page's bytes are complete and are what `identity` says: its client said so, or a move into
  // its Address() ended. Memory that outlives the process notes it; others ignore it.
  virtual void NotePublished(PageId, const PageIdentity& /*identity*/) {}

  // Host address of a page, for tiers in host memory; nullopt for others and for the cuda device.
  virtual std::optional<MutableRegion> Address(PageId) { return std::nullopt; }

  virtual uint64_t capacity_bytes() const = 0;
  // Slots of `pool` that Reserve() could still hand out, free slabs included.
  virtual uint64_t FreeSlots(PoolId pool) const = 0;
  virtual size_t inflight_max() const = 0;
  virtual TierStats stats() const = 0;
  virtual TierState state() const = 0;
  // Of the device behind the tier; not closed means kFailed.
  virtual BreakerState breaker() const { return BreakerState::kClosed; }
  // One line for `kvctl status` when the tier runs in a degraded mode (what, why, effect); empty
  // otherwise.
  virtual std::string degraded() const { return {}; }

  // What there was before we started, and will be after us; null: nothing.
  virtual Durable* durable() { return nullptr; }
  // `on_lost` runs once, on the core executor, when what the tier holds is gone for good although
  // nobody released it: its device has failed. Pages stay reserved until they are released.
  virtual void set_on_lost(std::function<void()> /*on_lost*/) {}

  // Programmer errors found by walking all bookkeeping. Tests and debug builds.
  virtual absl::Status CheckInvariants() const = 0;

  // Fails new operations, waits for those in flight, releases devices. Runs `done` queue to its end
  // before returning. Idempotent.
  virtual void Stop() = 0;
};

// What a tier adds that had pages before we started, and will have them after us.
class Durable {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;
  virtual ~Durable() = default;

  // Metadata that is known before Recover(), which then tells none: a tier that kept it in memory.
  virtual std::vector<std::pair<std::string, std::string>> metadata() const { return {}; }

  // Starts reading back what is stored, in the background while serving. On the core executor, in
  // order:
  //   `on_metadata` once for each SaveMetadata() record, then `on_pages` with batches of pages,
  //   parents before children of one prefix; it returns the pages that it keeps; the tier releases
  //   the others. Then `on_finished` once.
  // A recovered page is not known to any pool until OpenPool() named one of its slot size:
  // `pool_of` gives it.
  struct RecoveryHooks {
    std::function<void(std::string key, std::string value)> on_metadata;
    std::function<std::vector<bool>(const std::vector<RecoveredPage>&)> on_pages;
    std::function<PoolId(const PageIdentity&)> pool_of;
    absl::AnyInvocable<void(absl::Status)> on_finished;
  };
  virtual void Recover(RecoveryHooks hooks) = 0;

  // Keeps `value` (at most 64 KiB) under `key` (at most 256 bytes) durably, replacing it; an empty
  // value removes it. The store keeps its namespaces here. `done(OK)` only after it is on stable
  // storage (fsync), or, in memory that is kept, after a death of the process cannot undo it.
  // Errors: InvalidArgument; Unavailable, it is not there yet: the tier writes it before any page
  // when the device is back; ResourceExhausted.
  virtual void SaveMetadata(std::string key, std::string value, Done done) = 0;

  // The namespace goes by that name (it may have several): what is configured by name, such as
  // encryption, is looked up with it. Before its first page is written or recovered.
  virtual void NameNamespace(const Fingerprint&, std::string_view /*name*/) {}

  // The namespace was cleared: pages of epochs below `epoch` are never to be read again. A tier
  // that encrypts destroys their keys; `done(OK)` only after that is on stable storage. Errors:
  // Unavailable, the device fails: the keys are gone from memory, and from the device when it is
  // back.
  virtual void EraseEpochs(const Fingerprint&, uint64_t /*epoch*/, Done done) {
    done(absl::OkStatus());
  }
};

// A tier that is always durable.
class DurableTier : public Tier, public Durable {
 public:
  using Done = Tier::Done;
  Durable* durable() override { return this; }
};

}  // namespace kvstore::tiers
