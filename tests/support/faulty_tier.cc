#include "tests/support/faulty_tier.h"

#include <cstring>
#include <memory>

namespace kvstore::tests {
namespace {

bool IsRight(const std::byte* slot, const PageIdentity& identity) {
  return std::memcmp(slot, &identity.page_checksum, sizeof identity.page_checksum) == 0;
}

}  // namespace

FaultyTier::FaultyTier(Options options, Executor& executor, const Clock& clock, uint64_t seed)
    : options_(options),
      executor_(executor),
      clock_(clock),
      random_(seed),
      slots_({.num_slabs = options.num_slabs, .slab_bytes = options.slab_bytes}),
      slabs_(options.num_slabs, std::vector<std::byte>(options.slab_bytes)) {}

std::byte* FaultyTier::At(PageId page) {
  return slabs_[page.slab].data() + slots_.OffsetInSlab(page);
}

std::optional<MutableRegion> FaultyTier::Address(PageId page) {
  return MutableRegion{At(page), slots_.SlotBytes(page.slab)};
}

void FaultyTier::Release(PageId page) {
  std::memset(At(page), 0xee, 8);  // whoever still reads it must notice
  slots_.Release(page);
}

void FaultyTier::Quarantine(PageId page) { slots_.Quarantine(page); }

void FaultyTier::Later(absl::Time deadline, absl::AnyInvocable<absl::Status()> copy, Done done) {
  if (in_flight_ >= options_.inflight_max) {
    return executor_.Post([done = std::move(done)]() mutable {
      done(absl::ResourceExhaustedError("queue is full"));
    });
  }
  ++in_flight_;
  absl::Status fault;
  if (Chance(options_.fault_rate)) {
    fault = Chance(0.3)   ? absl::DataLossError("injected")
            : Chance(0.5) ? absl::UnavailableError("injected")
                          : absl::DeadlineExceededError("injected");
  }
  const absl::Duration delay = options_.delay_max * std::uniform_real_distribution<>(0, 1)(random_);
  const absl::Time when = std::min(clock_.Now() + delay, deadline);
  Task end = [this, fault, deadline, copy = std::move(copy), done = std::move(done)]() mutable {
    --in_flight_;
    if (clock_.Now() > deadline) return done(absl::DeadlineExceededError("too slow"));
    done(fault.ok() ? copy() : fault);
  };
  if (is_hanging_) return held_.push_back(std::move(end));
  executor_.PostAt(when, std::move(end));
}

void FaultyTier::Write(PageId page, const PageIdentity& identity, ConstRegion src,
                       absl::Time deadline, Done done) {
  const bool corrupt = Chance(options_.corruption_rate);
  Later(
      deadline,
      [this, page, identity, src, corrupt]() -> absl::Status {
        if (is_refused_(identity)) return absl::UnavailableError("refused");
        if (!IsRight(src.data, identity)) return absl::DataLossError("source differs");
        std::memcpy(At(page), src.data, src.bytes);
        if (corrupt) Corrupt(page);
        return absl::OkStatus();
      },
      std::move(done));
}

void FaultyTier::Read(PageId page, const PageIdentity& expect, MutableRegion dst,
                      absl::Time deadline, Done done) {
  Later(
      deadline,
      [this, page, expect, dst]() -> absl::Status {
        if (failing_reads_ > 0) return --failing_reads_, read_failure_;
        std::memcpy(dst.data, At(page), dst.bytes);
        return IsRight(dst.data, expect) ? absl::OkStatus()
                                         : absl::DataLossError("content differs");
      },
      std::move(done));
}

void FaultyTier::ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst,
                              absl::Time deadline, OnSlices on_slices, Done done) {
  TellSlices(1, page, expect, dst, deadline, std::move(on_slices), std::move(done));
}

void FaultyTier::TellSlices(uint32_t slices, PageId page, const PageIdentity& expect,
                            MutableRegion dst, absl::Time deadline, OnSlices on_slices, Done done) {
  if (slices >= expect.shape.num_slices) return Read(page, expect, dst, deadline, std::move(done));
  std::memcpy(dst.data, At(page), uint64_t{slices} * expect.shape.slice_bytes);
  executor_.Post([this, slices, page, expect, dst, deadline, on_slices = std::move(on_slices),
                  done = std::move(done)]() mutable {
    on_slices(slices);
    TellSlices(slices + 1, page, expect, dst, deadline, std::move(on_slices), std::move(done));
  });
}

tiers::TierStats FaultyTier::stats() const {
  tiers::TierStats s = stats_;
  s.capacity_bytes = slots_.capacity_bytes();
  s.used_bytes = slots_.used_bytes();
  s.used_pages = slots_.used_pages();
  s.quarantined_pages = slots_.quarantined_pages();
  s.in_flight = in_flight_;
  return s;
}

void FaultyTier::Recover(RecoveryHooks hooks) {
  auto shared = std::make_shared<RecoveryHooks>(std::move(hooks));
  executor_.Post([this, shared] {
    if (!options_.is_kept) {
      for (const auto& [key, value] : metadata_) shared->on_metadata(key, value);
    }
    std::vector<tiers::RecoveredPage> pages;
    for (const auto& [pool, identity] : recovered_) {
      const absl::StatusOr<PageId> page = slots_.Reserve(pool);
      if (!page.ok()) break;
      std::memcpy(At(*page), &identity.page_checksum, sizeof identity.page_checksum);
      pages.push_back({*page, identity});
    }
    const std::vector<bool> kept = shared->on_pages(pages);
    for (size_t i = 0; i < pages.size(); ++i) {
      if (kept[i]) continue;
      ++refused_;
      Release(pages[i].page);
    }
    shared->on_finished(absl::OkStatus());
  });
}

void FaultyTier::SaveMetadata(std::string key, std::string value, Done done) {
  executor_.Post(
      [this, key = std::move(key), value = std::move(value), done = std::move(done)]() mutable {
        if (metadata_failure_.ok()) metadata_[key] = std::move(value);
        done(metadata_failure_);
      });
}

}  // namespace kvstore::tests
