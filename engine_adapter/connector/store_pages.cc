#include "engine_adapter/connector/store_pages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Pages that one Reserve call asks for: few enough that a long prompt starts to be saved while it
// is still being computed.
constexpr size_t kSaveRunBlocksMax = 64;

// "DEADLINE_EXCEEDED" -> "deadline_exceeded": the key of a counter.
std::string ReasonOf(const absl::Status& status) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(status.code()));
}

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

StorePages::StorePages(const KvLayout& layout, StorePagesOptions options)
    : layout_(layout), options_(std::move(options)) {
  connection_ = Connect();
  if (connection_.ok()) saver_ = std::thread([this] { RunSaver(); });
}

StorePages::~StorePages() { Finish(); }

absl::Status StorePages::Connect() {
  ASSIGN_OR_RETURN(client_, client::Client::Create({.target = options_.target}));
  const absl::Time deadline = absl::Now() + options_.connect_deadline;
  RETURN_IF_ERROR(client_->WaitConnected(deadline));
  ASSIGN_OR_RETURN(namespace_, client_->Open(options_.namespace_name, options_.spec, deadline));
  return absl::OkStatus();
}

// --- Load

PrefixLoad StorePages::LoadPrefix(std::span<const uint32_t> token_ids) {
  const auto num_blocks = static_cast<int64_t>(token_ids.size()) / layout_.block_tokens;
  if (!connection_.ok()) {
    if (num_blocks > 0) load_.failures[ReasonOf(connection_)] += num_blocks;
    return load_;
  }
  hashes_ = namespace_->Hash(token_ids);
  if (hashes_.empty()) return load_;
  load_by_ = absl::Now() + options_.load_deadline;
  absl::StatusOr<client::Lease> lease = client_->Acquire(
      *namespace_, hashes_, client::HottestTier::kGpu, absl::Now() + options_.match_deadline);
  if (!lease.ok()) {
    load_.failures[ReasonOf(lease.status())] += num_blocks;
    return load_;
  }
  lease_ = *std::move(lease);
  loaded_.resize(lease_->matched_blocks());
  for (uint32_t block = 0; block < loaded_.size(); ++block) {
    // A page in the GPU tier is used where it lies; any other needs a page of ours.
    if (lease_->ReadyTier(block) == client::Tier::kGpu) {
      const absl::StatusOr<client::PageView> view = lease_->WaitReady(block, load_by_);
      if (!view.ok()) {
        TruncateLoad(block, view.status());
        break;
      }
      loaded_[block] = {.page = view->slot, .is_in_place = true, .found_in = view->found_in};
      continue;
    }
    const absl::StatusOr<std::byte*> page = AddPrivatePage();
    if (!page.ok()) {
      TruncateLoad(block, page.status());
      break;
    }
    loaded_[block].page = *page;
  }
  load_.num_blocks = static_cast<int64_t>(loaded_.size());
  return load_;
}

const std::byte* StorePages::LoadedPage(int64_t block_index) const {
  return loaded_[block_index].page;
}

int64_t StorePages::WaitReady(int64_t) {
  if (is_fetched_) return load_.num_blocks;
  is_fetched_ = true;
  for (uint32_t block = 0; block < loaded_.size(); ++block) {
    if (const absl::Status status = FetchBlock(block, load_by_); !status.ok()) {
      TruncateLoad(block, status);
      break;
    }
  }
  CountLoaded();
  return load_.num_blocks;
}

absl::Status StorePages::FetchBlock(uint32_t block, absl::Time deadline) {
  LoadedBlock& loaded = loaded_[block];
  if (loaded.is_in_place) return lease_->VerifyPage(block, deadline);
  ASSIGN_OR_RETURN(const client::PageView view, lease_->WaitReady(block, deadline));
  loaded.found_in = view.found_in;
  return lease_->CopyPage(block, const_cast<std::byte*>(loaded.page), deadline);  // a private page
}

void StorePages::TruncateLoad(int64_t blocks, const absl::Status& why) {
  load_.failures[ReasonOf(why)] += static_cast<int64_t>(loaded_.size()) - blocks;
  loaded_.resize(blocks);
  load_.num_blocks = blocks;
}

void StorePages::CountLoaded() {
  load_.blocks_by_source = {};
  load_.bytes_loaded = 0;
  for (const LoadedBlock& block : loaded_) {
    ++load_.blocks_by_source[static_cast<size_t>(SourceOf(block.found_in))];
    if (!block.is_in_place) load_.bytes_loaded += layout_.page_bytes();
  }
}

bool StorePages::IsIntact() {
  for (uint32_t block = 0; block < loaded_.size(); ++block) {
    if (!loaded_[block].is_in_place || lease_->IsCurrent(block)) continue;
    TruncateLoad(0, absl::AbortedError("the lease was lost while its pages were in use"));
    CountLoaded();
    return false;
  }
  return true;
}

// --- Save

absl::StatusOr<std::byte*> StorePages::AddPrivatePage() {
  ASSIGN_OR_RETURN(AlignedBuffer page,
                   AlignedBuffer::Allocate(static_cast<size_t>(layout_.page_bytes())));
  private_pages_.push_back(std::move(page));
  return private_pages_.back().data();
}

absl::StatusOr<std::byte*> StorePages::NewPage(int64_t block_index) {
  ASSIGN_OR_RETURN(std::byte* const page, AddPrivatePage());
  new_pages_[block_index] = page;
  return page;
}

void StorePages::PublishPage(int64_t block_index, std::span<const uint32_t> block_token_ids) {
  if (!saver_.joinable()) return;
  const auto block = static_cast<size_t>(block_index);
  const BlockHash parent = block == 0 ? RootHash(namespace_->fingerprint) : hashes_[block - 1];
  // Blocks of the prompt have their hashes; those of the output continue the chain.
  if (block == hashes_.size()) hashes_.push_back(HashBlock(parent, block_token_ids));
  Queue({.block_index = block_index,
         .hash = hashes_[block],
         .parent = block == 0 ? std::nullopt : std::optional(parent),
         .page = new_pages_.at(block_index)});
}

void StorePages::Finish() {
  if (std::exchange(is_finished_, true)) return;
  if (saver_.joinable()) {
    QueuePromotions();
    {
      absl::MutexLock lock(&mutex_);
      is_closing_ = true;
      save_by_ = absl::Now() + options_.save_deadline;
    }
    saver_.join();
  }
  lease_.reset();
  private_pages_.clear();
}

// Blocks that came from colder tiers are offered to the GPU tier, for the next request.
void StorePages::QueuePromotions() {
  for (size_t block = 0; block < loaded_.size(); ++block) {
    if (loaded_[block].is_in_place) continue;
    Queue({.block_index = static_cast<int64_t>(block),
           .hash = hashes_[block],
           .parent = block == 0 ? std::nullopt : std::optional(hashes_[block - 1]),
           .page = loaded_[block].page});
  }
}

void StorePages::Queue(Save save) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(save));
}

bool StorePages::HasSaverWork() const { return is_closing_ || !queue_.empty(); }

void StorePages::RunSaver() {
  for (;;) {
    std::vector<Save> run;
    absl::Time save_by;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &StorePages::HasSaverWork));
      if (queue_.empty()) return;
      save_by = save_by_;
      do {
        run.push_back(std::move(queue_.front()));
        queue_.pop_front();
      } while (!queue_.empty() && run.size() < kSaveRunBlocksMax &&
               queue_.front().block_index == run.back().block_index + 1);
    }
    if (absl::Now() < save_by) {
      SaveRun(run);
    } else {
      save_failures_["deadline_exceeded"] += static_cast<int64_t>(run.size());
    }
  }
}

void StorePages::SaveRun(std::span<const Save> run) {
  std::vector<BlockHash> hashes;
  for (const Save& save : run) hashes.push_back(save.hash);
  absl::StatusOr<client::Reservation> reservation = ReserveRun(run, hashes);
  if (!reservation.ok()) {
    save_failures_[ReasonOf(reservation.status())] += static_cast<int64_t>(run.size());
    return;
  }
  std::vector<uint32_t> filled;
  for (uint32_t i = 0; i < run.size(); ++i) {
    if (reservation->state(i) == client::Reservation::BlockState::kReserved) {
      reservation->Fill(i, run[i].page);
      filled.push_back(i);
    } else if (reservation->state(i) == client::Reservation::BlockState::kNoSpace) {
      ++save_failures_["no_space"];
    }
  }
  if (filled.empty()) return;
  if (const absl::Status status = reservation->Commit(filled, absl::InfiniteFuture());
      !status.ok()) {
    save_failures_[ReasonOf(status)] += static_cast<int64_t>(filled.size());
  }
}

absl::StatusOr<client::Reservation> StorePages::ReserveRun(std::span<const Save> run,
                                                           std::span<const BlockHash> hashes) {
  client::ReserveRequest request{
      .parent = run.front().parent,
      .first_block_index = static_cast<uint32_t>(run.front().block_index),
      .hashes = hashes,
      .tier = save_tier_};
  absl::StatusOr<client::Reservation> reservation = client_->Reserve(*namespace_, request);
  if (save_tier_ == client::Tier::kGpu && absl::IsInvalidArgument(reservation.status())) {
    save_tier_ = request.tier = client::Tier::kDram;  // the daemon has no GPU tier
    reservation = client_->Reserve(*namespace_, request);
  }
  return reservation;
}

}  // namespace kvstore::engine
