// KeptPages is what makes a memory tier durable over the death of its process: it finds in the
// ledger what an earlier process left, keeps those slots from being handed out, and gives them to
// the store page by page.
//
// What was being written when the process died is no page, and its slot stays out of use for a
// while: a client of the dead process, or a disk that was reading into it, may still write there.
// Later than that it would cost a miss: pages are checked against the checksum in the ledger
// whenever they are read, and on their first use after a restart like on any other.
//
// Confined to the core thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/slab_ledger.h"
#include "tiers/slab_pages.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

class KeptPages final : public Durable {
 public:
  struct Options {
    // For how long slots that were being written stay out of use: as long as reservations last.
    absl::Duration hold_time = absl::Seconds(30);
  };
  // Reads the ledger and withholds the slots of slabs that are `is_restored` [num_slabs]. All but
  // `options` outlive the object. O(slots).
  KeptPages(const Options& options, const std::vector<bool>& is_restored, SlabPages& pages,
            SlabLedger& ledger, Executor& core, const Clock& clock);
  ~KeptPages() override { Stop(); }

  std::vector<std::pair<std::string, std::string>> metadata() const override;
  // Tells pages only. Call once.
  void Recover(RecoveryHooks hooks) override;
  // `done` runs later. Errors: InvalidArgument; ResourceExhausted.
  void SaveMetadata(std::string key, std::string value, Done done) override;
  // Nothing is told or readmitted from here on.
  void Stop() { *is_alive_ = false; }

  struct Found {
    uint64_t pages = 0;     // told, or to be told
    uint64_t reserved = 0;  // were being written
    uint64_t damaged = 0;   // entries that are not what was written
  };
  const Found& found() const { return found_; }

 private:
  struct Place {
    uint32_t block_index = 0;
    uint32_t slab = 0;  // index
    uint32_t slot = 0;
  };
  void ReadSlab(uint32_t index);
  void Later(absl::AnyInvocable<void()> task);
  void TellBatch();
  // nullopt: not to be told; its slot is free again.
  std::optional<RecoveredPage> Claim(const Place& place);

  const Options options_;
  SlabPages& pages_;
  SlabLedger& ledger_;
  Executor& core_;
  const Clock& clock_;
  SlabLedger::Metadata metadata_;
  Found found_;
  std::vector<Place> to_tell_;  // parents before children
  size_t next_ = 0;
  std::vector<Place> held_;  // were being written
  RecoveryHooks hooks_;
  // Shared with tasks that may outlive us.
  const std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);
};

}  // namespace kvstore::tiers
