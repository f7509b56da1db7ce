// What the tier must remember of each slot besides its generation: enough to build the key of its
// index record and to check its trailer. 16 bytes a slot.
//
// Confined to the core thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/base/page_id.h"
#include "tiers/nvme/record_format.h"

namespace kvstore::tiers {

class PageNotes {
 public:
  explicit PageNotes(uint32_t num_slabs) : slabs_(num_slabs) {}

  // The slot holds, or is about to hold, `identity` under this generation on disk.
  void Set(PageId page, const PageIdentity& identity, uint64_t disk_generation) {
    Clear(page);
    std::vector<Note>& slab = slabs_[page.slab];
    if (slab.size() <= page.slot) slab.resize(page.slot + 1);
    slab[page.slot] = {Use(identity.fingerprint, identity.epoch), identity.block_index,
                       disk_generation};
    ++records_;
  }
  // Forgets the slot. True if there was something: `key` is then its record's key.
  bool Take(PageId page, RecordKey& key) {
    if (!Has(page)) return false;
    const Note& note = slabs_[page.slab][page.slot];
    const NamespaceUse& use = uses_[note.use];
    key = {use.fingerprint, use.epoch, note.block_index, page.slab, page.slot};
    Clear(page);
    return true;
  }
  bool Has(PageId page) const {
    const std::vector<Note>& slab = slabs_[page.slab];
    return page.slot < slab.size() && slab[page.slot].use != kNone;
  }
  // Requires Has(page).
  uint64_t disk_generation(PageId page) const {
    return slabs_[page.slab][page.slot].disk_generation;
  }
  uint64_t records() const { return records_; }
  // Memory of a slab that became free.
  void Drop(uint32_t slab) { slabs_[slab] = {}; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Note {
    uint32_t use = kNone;  // index in uses_
    uint32_t block_index = 0;
    uint64_t disk_generation = 0;
  };
  struct NamespaceUse {
    Fingerprint fingerprint;
    uint64_t epoch = 0;
    uint64_t pages = 0;  // 0: free
  };

  uint32_t Use(const Fingerprint& fingerprint, uint64_t epoch) {
    auto [it, is_new] = use_of_.try_emplace(std::make_pair(fingerprint, epoch), 0);
    if (is_new) {
      if (free_uses_.empty()) {
        free_uses_.push_back(static_cast<uint32_t>(uses_.size()));
        uses_.emplace_back();
      }
      it->second = free_uses_.back();
      free_uses_.pop_back();
      uses_[it->second] = {fingerprint, epoch, 0};
    }
    ++uses_[it->second].pages;
    return it->second;
  }
  void Clear(PageId page) {
    if (!Has(page)) return;
    const uint32_t index = std::exchange(slabs_[page.slab][page.slot].use, kNone);
    --records_;
    NamespaceUse& use = uses_[index];
    if (--use.pages > 0) return;
    use_of_.erase(std::make_pair(use.fingerprint, use.epoch));
    free_uses_.push_back(index);
  }

  std::vector<std::vector<Note>> slabs_;  // [num_slabs][slots seen so far]
  std::vector<NamespaceUse> uses_;
  std::vector<uint32_t> free_uses_;
  absl::flat_hash_map<std::pair<Fingerprint, uint64_t>, uint32_t> use_of_;
  uint64_t records_ = 0;
};

}  // namespace kvstore::tiers
