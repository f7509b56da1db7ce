#include "engine_adapter/connector/store_pages.h"

#include <utility>

#include "absl/time/clock.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

BlockSource SourceOf(client::Tier tier) {
  switch (tier) {
    case client::Tier::kGpu:
      return BlockSource::kGpu;
    case client::Tier::kDram:
      return BlockSource::kDram;
    case client::Tier::kNvme:
      return BlockSource::kNvme;
  }
  return BlockSource::kDram;
}

}  // namespace

StorePages::StorePages(const KvLayout& layout, std::shared_ptr<StoreConnection> connection,
                       PageMemory& memory, PageMover& mover, StorePagesOptions options)
    : layout_(layout),
      connection_(std::move(connection)),
      memory_(memory),
      mover_(mover),
      options_(options) {}

StorePages::~StorePages() { Finish(); }

// --- Load

PrefixLoad StorePages::LoadPrefix(std::span<const uint32_t> token_ids) {
  const auto num_blocks = static_cast<int64_t>(token_ids.size()) / layout_.block_tokens;
  namespace_ = connection_->Use();
  if (!namespace_.ok()) {
    if (num_blocks > 0) load_.failures[FailureReason(namespace_.status())] += num_blocks;
    return load_;
  }
  saver_.emplace(*connection_, *namespace_, mover_);
  hashes_ = namespace_->Hash(token_ids);
  if (hashes_.empty()) return load_;
  load_by_ = absl::Now() + options_.load_deadline;
  absl::StatusOr<client::Lease> lease = connection_->client().Acquire(
      *namespace_, hashes_, client::HottestTier::kGpu, absl::Now() + options_.match_deadline);
  if (!lease.ok()) {
    connection_->Suspect();
    load_.failures[FailureReason(lease.status())] += num_blocks;
    return load_;
  }
  lease_ = *std::move(lease);
  loaded_.resize(lease_->matched_blocks());
  for (uint32_t block = 0; block < loaded_.size(); ++block) {
    if (const absl::Status placed = PlaceBlock(block); !placed.ok()) {
      TruncateLoad(block, placed);
      break;
    }
  }
  load_.num_blocks = static_cast<int64_t>(loaded_.size());
  if (!loaded_.empty()) {
    loading_ = mover_.StartLoad(*namespace_, *lease_, loaded_, load_by_);
  }
  return load_;
}

// A page that the back-end can read where it lies stays there; any other needs a page of ours.
absl::Status StorePages::PlaceBlock(uint32_t block) {
  loaded_[block].hash = hashes_[block];
  if (lease_->ReadyTier(block) == client::Tier::kGpu) {
    ASSIGN_OR_RETURN(const client::PageView view, lease_->WaitReady(block, load_by_));
    if (const std::byte* const page = mover_.InPlace(view); page != nullptr) {
      loaded_[block].page = page;
      loaded_[block].is_in_place = true;
      loaded_[block].found_in = view.found_in;
      return absl::OkStatus();
    }
  }
  ASSIGN_OR_RETURN(loaded_[block].page, AddPrivatePage());
  return absl::OkStatus();
}

const std::byte* StorePages::LoadedPage(int64_t block_index) const {
  return loaded_[static_cast<size_t>(block_index)].page;
}

int64_t StorePages::WaitReady(int64_t layer) {
  if (loading_ == nullptr) return load_.num_blocks;
  const int64_t good = loading_->WaitReady(layer);
  if (good < load_.num_blocks) {
    const absl::Status why = loading_->failure();
    TruncateLoad(good, why);
  }
  CountLoaded();
  return load_.num_blocks;
}

void StorePages::TruncateLoad(int64_t blocks, const absl::Status& why) {
  load_.failures[FailureReason(why)] += static_cast<int64_t>(loaded_.size()) - blocks;
  loaded_.resize(static_cast<size_t>(blocks));
  load_.num_blocks = blocks;
}

void StorePages::CountLoaded() {
  load_.blocks_by_source = {};
  load_.bytes_loaded = 0;
  for (const LoadedBlock& block : loaded_) {
    ++load_.blocks_by_source[static_cast<size_t>(SourceOf(block.found_in))];
    if (!block.is_in_place) load_.bytes_loaded += static_cast<uint64_t>(layout_.page_bytes());
  }
}

bool StorePages::IsIntact() {
  if (loading_ == nullptr) return true;
  const absl::Status checked = loading_->Check();
  is_checked_ = checked.ok();
  if (is_checked_) return true;
  loading_.reset();
  TruncateLoad(0, checked);
  CountLoaded();
  return false;
}

// --- Save

absl::StatusOr<std::byte*> StorePages::AddPrivatePage() {
  ASSIGN_OR_RETURN(PageMemory::Page page, memory_.Allocate(PageMemory::Fill::kNone));
  private_pages_.push_back(std::move(page));
  return private_pages_.back().get();
}

absl::StatusOr<std::byte*> StorePages::NewPage(int64_t block_index) {
  ASSIGN_OR_RETURN(std::byte* const page, AddPrivatePage());
  new_pages_[block_index] = page;
  return page;
}

void StorePages::PublishPage(int64_t block_index, std::span<const uint32_t> block_token_ids) {
  if (!saver_.has_value()) return;
  const auto block = static_cast<size_t>(block_index);
  // Blocks of the prompt have their hashes; those of the output continue the chain.
  if (block == hashes_.size()) {
    const BlockHash parent = block == 0 ? RootHash(namespace_->fingerprint) : hashes_[block - 1];
    hashes_.push_back(HashBlock(parent, block_token_ids));
  }
  QueuePage(block_index, new_pages_.at(block_index));
}

void StorePages::QueuePage(int64_t block, const std::byte* page) {
  const auto position = static_cast<size_t>(block);
  saver_->Queue({.block_index = block,
                 .hash = hashes_[position],
                 .parent = block == 0 ? std::nullopt : std::optional(hashes_[position - 1]),
                 .page = page});
}

void StorePages::Finish() {
  if (std::exchange(is_finished_, true)) return;
  if (saver_.has_value()) {
    // Blocks that came from colder tiers are offered to the GPU tier, for the next request; none
    // whose bytes nobody has checked.
    for (size_t block = 0; is_checked_ && block < loaded_.size(); ++block) {
      if (!loaded_[block].is_in_place) QueuePage(static_cast<int64_t>(block), loaded_[block].page);
    }
    saver_->Finish(absl::Now() + options_.save_deadline);
    save_failures_ = saver_->failures();
  }
  loading_.reset();
  lease_.reset();
  private_pages_.clear();
}

}  // namespace kvstore::engine
