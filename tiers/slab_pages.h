// SlabPages is the space of a memory tier: slabs with ids, generations that other processes see,
// and the rule that memory never changes tenants. It decides where pages are; it moves none.
//
//   slab index (fixed, SlotAllocator)  ->  slab id (counts up, what PageId carries)  ->  SlabMemory
//   (one tenant for ever)
//
// A slab that goes to another pool of its tenant keeps id and memory. One that goes to another
// tenant gets a new id and new, zeroed memory; the old memory is freed in the background although
// former readers may still map it. Memory in use is at most the capacity and one slab: while a
// slab's old memory is being freed no other slab changes tenants.
//
// A thread of its own prepares memory (page faults, locking) so that the first save does not pay
// for it, and frees it.
//
// Threads: confined to the core thread, except Export() and degraded(): thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/page_id.h"
#include "tiers/slab_ledger.h"
#include "tiers/slab_memory.h"
#include "tiers/slot_allocator.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

// Where a page lies. Keeps the memory mapped, whatever becomes of the slab.
struct SlabPlace {
  std::shared_ptr<SlabMemory> memory;  // shared with operations in flight
  uint64_t offset = 0;
  uint64_t slot_bytes = 0;
};

// When memory is faulted in: all of it from the start on, or each slab once it is used.
enum class Prepare { kAtStart, kWhenUsed };

// Slab size for a tier of `bytes`: an eighth, in whole 2 MiB, from 2 MiB to 256 MiB. Slabs must be
// many, to move between tenants, and large, to waste little behind their last slot; 256 MiB hold
// every slot that a namespace may have.
uint64_t ChooseSlabBytes(uint64_t bytes);
// Errors: InvalidArgument, saying what is valid, unless `bytes` are 1 to 2^20 slabs of
// `slab_bytes`, a multiple of 4096.
absl::Status ValidateSlabs(uint64_t bytes, uint64_t slab_bytes);

// Told of a slab's host memory while it can be used, so that a device may register it.
// Run on the background thread, one at a time, and never after Stop().
struct MemoryHooks {
  std::function<void(MutableRegion)> on_prepared;  // faulted in; may be empty
  // Before the memory is freed: nothing is in flight in it. Also for memory that was never
  // prepared. May be empty.
  std::function<void(MutableRegion)> on_going;
};

// Keeps the memory of slabs for the process that comes after this one.
class SlabKeeper {
 public:
  virtual ~SlabKeeper() = default;
  // Thread-safe; may block for a bounded time. Errors: Unavailable, it is not kept.
  virtual absl::Status Keep(uint32_t slab_id, const SlabMemory& memory) = 0;
  // Thread-safe. The memory is of no use any more.
  virtual void Forget(uint32_t slab_id) = 0;
};

// A slab that an earlier process left.
struct RestoredSlab {
  uint32_t id = 0;
  std::unique_ptr<SlabMemory> memory;  // null: that slab begins anew
  std::optional<std::string> tenant;
};

class SlabPages {
 public:
  struct Options {
    std::string name;  // of the background thread, at most 15 characters
    uint32_t num_slabs = 0;
    uint64_t slab_bytes = 0;
    Prepare prepare = Prepare::kAtStart;
    MemoryHooks hooks;
    std::function<absl::StatusOr<std::unique_ptr<SlabMemory>>()> make_slab;  // core thread
    // For a tier that outlives its process, both or none: told of every use of memory. They
    // outlive the object.
    SlabLedger* ledger = nullptr;
    SlabKeeper* keeper = nullptr;
    std::vector<RestoredSlab> restored;  // [num_slabs], or empty
    uint64_t generation_base = 0;        // above all that restored slabs had
  };
  // Makes all slabs, so that running out of descriptors shows at start-up. `clock` outlives the
  // object. Requires ValidateSlabs() to be OK. Errors: what make_slab returns.
  static absl::StatusOr<std::unique_ptr<SlabPages>> Create(Options options, const Clock& clock);
  ~SlabPages();  // Stop()

  // Errors: InvalidArgument, as Tier::OpenPool(), or the pool is open with another tenant or slot
  // size.
  absl::Status OpenPool(PoolId pool, const PoolSpec& spec);
  // Errors: ResourceExhausted; NotFound, unknown pool; Unavailable, no descriptor for fresh memory.
  absl::StatusOr<PageId> Reserve(PoolId pool);
  // Require IsCurrent(page), as SlotAllocator. The generation changes for all readers before the
  // slot can be reserved again.
  void Release(PageId page);
  void Quarantine(PageId page);

  // The page's bytes are complete: the ledger notes what they are. Ignored unless IsCurrent(page).
  void NotePublished(PageId page, const PageIdentity& identity);

  // For slots of restored slabs, by slab index. A slot that is withheld is free for nobody until it
  // is claimed for the page in it, or readmitted. Errors of Withhold(): as SlotAllocator. Errors of
  // Claim(): as SlotAllocator::ReserveAt(); FailedPrecondition, the memory is another tenant's.
  absl::Status Withhold(uint32_t index, uint64_t slot_bytes, uint32_t slot);
  absl::StatusOr<PageId> Claim(PoolId pool, uint32_t index, uint32_t slot);
  void Readmit(uint32_t index, uint32_t slot);

  // As SlotAllocator. Unknown slabs are ignored.
  void CloseSlab(uint32_t slab_id);
  void ReopenSlab(uint32_t slab_id);

  bool IsCurrent(PageId page) const { return ToSlots(page).has_value(); }
  // nullopt: not current.
  std::optional<SlabPlace> Find(PageId page) const;
  const SlotAllocator& slots() const { return slots_; }

  // Thread-safe. Errors: NotFound for unknown slabs, slabs given back, slabs of no tenant yet and
  // slabs of another tenant alike; Unavailable, out of descriptors.
  absl::StatusOr<SlabExport> Export(uint32_t slab_id, std::string_view tenant,
                                    MemoryAccess access) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Thread-safe. Why memory could not be prepared as asked; empty when it could.
  std::string degraded() const ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status CheckInvariants() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the background thread. Idempotent. Pages stay readable.
  void Stop();
  // Waits until the background thread has nothing to do. Tests and benchmarks.
  void WaitUntilPrepared();

 private:
  struct Slab {
    uint32_t id = 0;
    std::shared_ptr<SlabMemory>
        memory;  // shared with Export(), SlabPlace and the background thread
    std::optional<std::string> tenant;
    bool is_prepared = false;  // or about to be
  };
  struct Exported {
    std::shared_ptr<const SlabMemory> memory;
    std::string tenant;
  };
  struct Preparation {
    std::shared_ptr<const SlabMemory> memory;
    uint64_t done_bytes = 0;
  };

  SlabPages(Options options, const Clock& clock);
  absl::Status OnAssign(uint32_t index, PoolId pool);
  void EndUse(PageId slot);
  uint32_t AssignCost(uint32_t index, PoolId pool) const;
  absl::Status ReplaceMemory(Slab& slab);
  // Takes over what was restored, or makes fresh memory.
  absl::Status OpenSlab(uint32_t index);
  absl::Status NoteSlab(uint32_t index, uint64_t slot_bytes);
  void NoteDegraded(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  // With the slab's index in place of its id; nullopt: not current.
  std::optional<PageId> ToSlots(PageId page) const;
  void EnqueuePreparation(Slab& slab) ABSL_LOCKS_EXCLUDED(mutex_);
  void PostPreparation();
  void PreparePiece() ABSL_LOCKS_EXCLUDED(mutex_);  // background thread

  Options options_;
  std::vector<Slab> slabs_;                           // [num_slabs], by index
  absl::flat_hash_map<uint32_t, uint32_t> index_of_;  // id -> index
  absl::flat_hash_map<PoolId, std::string> tenant_of_;
  uint32_t next_id_ = 1;  // a zeroed PageId never names memory
  SlotAllocator slots_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint32_t, Exported> exported_
      ABSL_GUARDED_BY(mutex_);  // slabs of a tenant, by id
  std::deque<Preparation> to_prepare_ ABSL_GUARDED_BY(mutex_);
  bool is_preparing_ ABSL_GUARDED_BY(mutex_) = false;  // a task for it is posted
  std::string degraded_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> is_freeing_ =
      false;  // release by the background thread: pairs with the acquire in ReplaceMemory()
  std::atomic<bool> stopping_ = false;
  EventLoop background_;  // last: its tasks use all of the above
};

}  // namespace kvstore::tiers
