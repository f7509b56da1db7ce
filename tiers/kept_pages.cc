#include "tiers/kept_pages.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvstore::tiers {
namespace {

constexpr size_t kPagesABatch = 512;  // about 0.5 ms of the core thread
constexpr size_t kKeyBytesMax = 256;
constexpr size_t kValueBytesMax = size_t{64} << 10;

}  // namespace

KeptPages::KeptPages(const Options& options, const std::vector<bool>& is_restored, SlabPages& pages,
                     SlabLedger& ledger, Executor& core, const Clock& clock)
    : options_(options),
      pages_(pages),
      ledger_(ledger),
      core_(core),
      clock_(clock),
      metadata_(ledger.LoadMetadata()) {
  for (uint32_t index = 0; index < is_restored.size(); ++index) {
    if (is_restored[index]) ReadSlab(index);
  }
  std::ranges::stable_sort(to_tell_, {}, &Place::block_index);
  found_.pages = to_tell_.size();
}

void KeptPages::ReadSlab(uint32_t index) {
  const std::optional<SlabLedger::Slab> slab = ledger_.ReadSlab(index);
  for (uint32_t slot = 0; slab.has_value() && slot < ledger_.slots_of(index); ++slot) {
    const SlabLedger::Slot found = ledger_.ReadSlot(index, slot);
    if (found.state == SlabLedger::SlotState::kFree) continue;
    if (!pages_.Withhold(index, slab->slot_bytes, slot).ok()) continue;
    found_.reserved += found.state == SlabLedger::SlotState::kReserved;
    found_.damaged += found.state == SlabLedger::SlotState::kDamaged;
    const bool is_page = found.state == SlabLedger::SlotState::kPage;
    (is_page ? to_tell_ : held_).push_back({found.identity.block_index, index, slot});
  }
}

std::vector<std::pair<std::string, std::string>> KeptPages::metadata() const {
  return {metadata_.begin(), metadata_.end()};
}

void KeptPages::Later(absl::AnyInvocable<void()> task) {
  core_.Post([task = std::move(task), alive = is_alive_]() mutable {
    if (*alive) task();
  });
}

void KeptPages::Recover(RecoveryHooks hooks) {
  hooks_ = std::move(hooks);
  core_.PostAt(clock_.Now() + options_.hold_time, [this, alive = is_alive_] {
    if (!*alive) return;
    for (const Place& place : std::exchange(held_, {})) pages_.Readmit(place.slab, place.slot);
  });
  Later([this] { TellBatch(); });
}

std::optional<RecoveredPage> KeptPages::Claim(const Place& place) {
  // Once more: what was told at first may have been changed by an earlier batch's consequences.
  const SlabLedger::Slot slot = ledger_.ReadSlot(place.slab, place.slot);
  if (slot.state == SlabLedger::SlotState::kPage) {
    const absl::StatusOr<PageId> page =
        pages_.Claim(hooks_.pool_of(slot.identity), place.slab, place.slot);
    if (page.ok()) return RecoveredPage{*page, slot.identity};
  }
  pages_.Readmit(place.slab, place.slot);
  return std::nullopt;
}

void KeptPages::TellBatch() {
  std::vector<RecoveredPage> batch;
  for (; next_ < to_tell_.size() && batch.size() < kPagesABatch; ++next_) {
    if (const auto page = Claim(to_tell_[next_])) batch.push_back(*page);
  }
  const std::vector<bool> keeps = hooks_.on_pages(batch);
  for (size_t i = 0; i < batch.size(); ++i) {
    if (i >= keeps.size() || !keeps[i]) pages_.Release(batch[i].page);
  }
  if (next_ < to_tell_.size()) return Later([this] { TellBatch(); });
  to_tell_ = {};
  auto on_finished = std::move(hooks_.on_finished);
  hooks_ = {};
  if (on_finished) on_finished(absl::OkStatus());
}

void KeptPages::SaveMetadata(std::string key, std::string value, Done done) {
  absl::Status status;
  if (key.size() > kKeyBytesMax || value.size() > kValueBytesMax) {
    status = absl::InvalidArgumentError(absl::StrCat("a record of ", key.size(), " + ",
                                                     value.size(), " bytes, valid: 256 + 65536"));
  } else {
    SlabLedger::Metadata changed = metadata_;
    if (value.empty()) {
      changed.erase(key);
    } else {
      changed[key] = std::move(value);
    }
    status = ledger_.SaveMetadata(changed);
    if (status.ok()) metadata_ = std::move(changed);
  }
  core_.Post([status, done = std::move(done)]() mutable { done(status); });
}

}  // namespace kvstore::tiers
