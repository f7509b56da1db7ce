#include "engine_adapter/connector/page_mover.h"

#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Copies and checks whole pages, all of them the first time somebody waits.
class HostLoad final : public PageMover::Load {
 public:
  HostLoad(client::Lease& lease, std::span<LoadedBlock> blocks, absl::Time deadline)
      : lease_(lease), blocks_(blocks), deadline_(deadline) {}

  int64_t WaitReady(int64_t) override {
    if (!std::exchange(is_fetched_, true)) FetchAll();
    return num_good_;
  }
  const absl::Status& failure() const override { return failure_; }

  absl::Status Check() override {
    for (uint32_t block = 0; block < num_good_; ++block) {
      if (blocks_[block].is_in_place && !lease_.IsCurrent(block))
        return absl::AbortedError("the lease was lost while its pages were in use");
    }
    return absl::OkStatus();
  }

 private:
  void FetchAll() {
    for (uint32_t block = 0; block < blocks_.size(); ++block) {
      failure_ = Fetch(block);
      if (!failure_.ok()) return;
      ++num_good_;
    }
  }

  absl::Status Fetch(uint32_t block) {
    LoadedBlock& loaded = blocks_[block];
    if (loaded.is_in_place) return lease_.VerifyPage(block, deadline_);
    ASSIGN_OR_RETURN(const client::PageView view, lease_.WaitReady(block, deadline_));
    loaded.found_in = view.found_in;
    // A private page: ours to write.
    return lease_.CopyPage(block, const_cast<std::byte*>(loaded.page), deadline_);
  }

  client::Lease& lease_;
  const std::span<LoadedBlock> blocks_;
  const absl::Time deadline_;
  bool is_fetched_ = false;
  int64_t num_good_ = 0;
  absl::Status failure_;
};

}  // namespace

// Pages in the GPU tier of the `host` device: in the others copying is part of the comparison.
const std::byte* HostPageMover::InPlace(const client::PageView& view) const {
  return view.tier == client::Tier::kGpu ? view.slot : nullptr;
}

std::unique_ptr<PageMover::Load> HostPageMover::StartLoad(const client::Namespace&,
                                                          client::Lease& lease,
                                                          std::span<LoadedBlock> blocks,
                                                          absl::Time deadline) {
  return std::make_unique<HostLoad>(lease, blocks, deadline);
}

absl::Status HostPageMover::Save(const client::Namespace&, std::span<const FilledPage> pages,
                                 client::Reservation& reservation) {
  for (const FilledPage& page : pages) reservation.Fill(page.position, page.page);
  return absl::OkStatus();
}

}  // namespace kvstore::engine
