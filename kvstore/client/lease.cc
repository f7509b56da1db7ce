#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/lease_state.h"
#include "kvstore/client/wire.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::client {
namespace {

// The wire's tiers are ours plus one.
uint32_t SocketTier(uint8_t wire_tier) { return wire_tier - 1u; }

// The slot in host memory; one on a device is brought into `copy`.
absl::StatusOr<const std::byte*> HostSlot(const Lease::State::Location& location,
                                          const PageShape& shape, std::vector<std::byte>* copy) {
  if (location.slot() != nullptr) return location.slot();
  copy->resize(shape.slot_bytes());
  RETURN_IF_ERROR(location.slab->device()->Read(location.offset, copy->data(), copy->size()));
  return copy->data();
}

}  // namespace

Lease::State::State(std::shared_ptr<Connection> c, std::shared_ptr<MemorySession> s,
                    const Namespace& ns, std::vector<BlockHash> h)
    : connection(std::move(c)),
      session(std::move(s)),
      fingerprint(ns.fingerprint),
      shape(ns.spec.shape),
      hashes(std::move(h)) {}

Lease::State::~State() { Release(); }

absl::Status Lease::State::OnMessage(const v1::AcquireResponse& message) {
  uint64_t to_hold = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (!is_known_) {
      if (!message.is_first() || message.matched_blocks() > hashes.size())
        return absl::UnavailableError("Acquire: not a first message");
      is_known_ = true;
      lease_ = message.lease();
      matched_blocks_ = message.matched_blocks();
      columns_.resize(matched_blocks_);
      if (!is_released_) to_hold = lease_;
    }
    RETURN_IF_ERROR(TakeColumns(message, shape, &columns_, &leading_slices_));
    // Only ever shrinks.
    matched_blocks_ = std::min(matched_blocks_, message.matched_blocks());
    if (!message.lost_reason().empty()) lost_reason_ = message.lost_reason();
  }
  if (to_hold != 0) connection->HoldLease(session, to_hold);
  return absl::OkStatus();
}

absl::Status Lease::State::OnReply(AcquireReply reply) {
  RETURN_IF_ERROR(CheckReply(reply, hashes.size()));
  {
    absl::MutexLock lock(&mutex_);
    is_known_ = true;
    has_stream_ended_ = true;
    lease_ = reply.lease;
    matched_blocks_ = static_cast<uint32_t>(reply.blocks.size());
    columns_ = std::move(reply.blocks);
  }
  if (reply.lease != 0) connection->HoldLease(session, reply.lease);
  return absl::OkStatus();
}

void Lease::State::OnStreamEnd(absl::Status why) {
  absl::MutexLock lock(&mutex_);
  has_stream_ended_ = true;
  stream_status_ = std::move(why);
  stream_ = nullptr;
}

void Lease::State::SetStream(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  if (!has_stream_ended_) stream_ = context;
}

void Lease::State::GiveUp() {
  absl::MutexLock lock(&mutex_);
  if (is_known_ || stream_ == nullptr) return;
  is_given_up_ = true;
  stream_->TryCancel();
}

bool Lease::State::is_given_up() const {
  absl::MutexLock lock(&mutex_);
  return is_given_up_;
}

uint32_t Lease::State::matched_blocks() const {
  absl::MutexLock lock(&mutex_);
  return matched_blocks_;
}

std::optional<Tier> Lease::State::ReadyTier(uint32_t block) const {
  absl::MutexLock lock(&mutex_);
  if (is_released_ || block >= matched_blocks_ || !IsReady(block, shape.num_slices))
    return std::nullopt;
  return static_cast<Tier>(SocketTier(columns_.tier[block]));
}

absl::Status Lease::State::LostStatus(uint32_t block) const {
  if (is_released_) return absl::FailedPreconditionError("the lease has been released");
  if (block >= hashes.size())
    return absl::InvalidArgumentError(absl::StrCat("block ", block, " of ", hashes.size()));
  if (block >= matched_blocks_) {
    return absl::DataLossError(absl::StrCat(
        "block ", block,
        " is not there: ", lost_reason_.empty() ? "it was not matched" : lost_reason_));
  }
  if (session->is_lost())
    return absl::UnavailableError(
        absl::StrCat("the daemon has gone before block ", block, " was there"));
  return absl::UnavailableError(absl::StrCat(
      "block ", block, " did not come: ",
      stream_status_.ok() ? "the stream ended" : std::string(stream_status_.message())));
}

std::shared_ptr<const MappedSlab> Lease::State::KnownSlab(uint32_t tier, uint32_t slab) const {
  for (const auto& [key, mapped] : slabs_) {
    if (key.first == tier && key.second == slab) return mapped;
  }
  return nullptr;
}

absl::StatusOr<Lease::State::Location> Lease::State::Locate(
    uint32_t block, std::shared_ptr<const MappedSlab> slab) const {
  const std::optional<uint64_t> offset = SlotOffset(columns_.slot[block], shape, slab->bytes());
  if (!offset.has_value()) return absl::AbortedError("a slot outside of its slab");
  Location location;
  location.offset = *offset;
  location.slab = std::move(slab);
  location.generation = columns_.generation[block];
  location.page_checksum = columns_.page_checksum[block];
  location.tier = static_cast<Tier>(SocketTier(columns_.tier[block]));
  location.found_in = static_cast<Tier>(SocketTier(columns_.found_in[block]));
  return location;
}

std::optional<Lease::State::Location> Lease::State::Now(uint32_t block) {
  absl::MutexLock lock(&mutex_);
  if (is_released_ || block >= matched_blocks_ || !IsReady(block, shape.num_slices))
    return std::nullopt;
  std::shared_ptr<const MappedSlab> slab =
      KnownSlab(SocketTier(columns_.tier[block]), columns_.slab[block]);
  if (slab == nullptr) return std::nullopt;
  absl::StatusOr<Location> location = Locate(block, std::move(slab));
  if (!location.ok()) return std::nullopt;
  return *std::move(location);
}

absl::StatusOr<Lease::State::Location> Lease::State::Wait(uint32_t block, uint32_t num_slices,
                                                          absl::Time deadline) {
  const absl::Duration timeout = TimeLeft(deadline, connection->options().deadline);
  std::pair<uint32_t, uint32_t> key;
  {
    absl::MutexLock lock(&mutex_);
    const auto is_decided = [this, block, num_slices]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return block >= matched_blocks_ || is_released_ || has_stream_ended_ ||
             IsReady(block, num_slices);
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&is_decided), timeout)) {
      return absl::DeadlineExceededError(absl::StrCat("block ", block, " is still on its way"));
    }
    if (is_released_ || block >= matched_blocks_ || !IsReady(block, num_slices))
      return LostStatus(block);
    key = {SocketTier(columns_.tier[block]), columns_.slab[block]};
    if (auto slab = KnownSlab(key.first, key.second)) return Locate(block, std::move(slab));
  }
  // Outside of the lock: the daemon is asked for the slab if it is not mapped yet.
  ASSIGN_OR_RETURN(std::shared_ptr<const MappedSlab> slab,
                   session->Slab(key.first, key.second, timeout));
  absl::MutexLock lock(&mutex_);
  if (is_released_) return LostStatus(block);
  if (KnownSlab(key.first, key.second) == nullptr) slabs_.push_back({key, slab});
  return Locate(block, std::move(slab));
}

PageIdentity Lease::State::Identity(uint32_t block, const Location& location) const {
  PageIdentity identity;
  identity.shape = shape;
  identity.fingerprint = fingerprint;
  identity.hash = hashes[block];
  if (block > 0) identity.parent = hashes[block - 1];
  identity.block_index = block;
  identity.page_checksum = location.page_checksum;
  return identity;
}

absl::Status Lease::State::CheckCurrent(uint32_t block, const Location& location) const {
  // The bytes were read before this: pairs with the full barrier of the daemon between a generation
  // and new bytes.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (location.IsCurrent()) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat("block ", block, ": the lease was lost before its page was read"));
}

absl::Status Lease::State::CheckSlice(uint32_t slice) const {
  if (slice < shape.num_slices) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("slice ", slice, " of ", shape.num_slices));
}

void Lease::State::ReportBad(uint32_t block) {
  absl::MutexLock lock(&mutex_);
  bad_blocks_.push_back(block);
}

void Lease::State::Release() {
  uint64_t lease = 0;
  std::vector<uint32_t> bad_blocks;
  {
    absl::MutexLock lock(&mutex_);
    if (is_released_) return;
    is_released_ = true;
    if (stream_ != nullptr) stream_->TryCancel();
    lease = std::exchange(lease_, 0);
    bad_blocks.swap(bad_blocks_);
    slabs_.clear();
  }
  if (lease != 0) connection->ReleaseLease(session, lease, std::move(bad_blocks));
}

Lease::Lease(std::shared_ptr<State> state) : state_(std::move(state)) {}
Lease::Lease(Lease&&) noexcept = default;
Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    Release();
    state_ = std::move(other.state_);
  }
  return *this;
}
Lease::~Lease() { Release(); }

void Lease::Release() {
  if (state_ != nullptr) state_->Release();
}

uint32_t Lease::matched_blocks() const { return state_->matched_blocks(); }

std::optional<Tier> Lease::ReadyTier(uint32_t block) const { return state_->ReadyTier(block); }

absl::StatusOr<PageView> Lease::WaitReady(uint32_t block, absl::Time deadline) {
  ASSIGN_OR_RETURN(State::Location location,
                   state_->Wait(block, state_->shape.num_slices, deadline));
  return PageView{.slot = location.slot(),
                  .device_slot = location.device_slot(),
                  .tier = location.tier,
                  .found_in = location.found_in,
                  .page_checksum = location.page_checksum,
                  .generation = location.generation};
}

absl::Status Lease::WaitSlice(uint32_t block, uint32_t slice, absl::Time deadline) {
  RETURN_IF_ERROR(state_->CheckSlice(slice));
  return state_->Wait(block, slice + 1, deadline).status();
}

absl::Status Lease::CopyPage(uint32_t block, std::byte* page, absl::Time deadline) {
  ASSIGN_OR_RETURN(State::Location location,
                   state_->Wait(block, state_->shape.num_slices, deadline));
  std::vector<std::byte> copy;
  ASSIGN_OR_RETURN(const std::byte* slot, HostSlot(location, state_->shape, &copy));
  absl::Status copied = transfer::CopyFromSlot(page, slot, state_->Identity(block, location));
  // A slot that has changed hands explains wrong bytes: that is not a bad page.
  RETURN_IF_ERROR(state_->CheckCurrent(block, location));
  if (!copied.ok()) state_->ReportBad(block);
  return copied;
}

absl::Status Lease::CopySlice(uint32_t block, uint32_t slice, std::byte* out, absl::Time deadline) {
  RETURN_IF_ERROR(state_->CheckSlice(slice));
  ASSIGN_OR_RETURN(State::Location location, state_->Wait(block, slice + 1, deadline));
  const PageIdentity identity = state_->Identity(block, location);
  std::vector<std::byte> copy;
  ASSIGN_OR_RETURN(const std::byte* slot, HostSlot(location, state_->shape, &copy));
  transfer::SliceTable table;
  absl::Status copied = table.Load(slot, identity);
  if (copied.ok()) copied = transfer::CopySliceFromSlot(out, slot, identity, table, slice);
  RETURN_IF_ERROR(state_->CheckCurrent(block, location));
  if (!copied.ok()) state_->ReportBad(block);
  return copied;
}

absl::Status Lease::VerifyPage(uint32_t block, absl::Time deadline) {
  ASSIGN_OR_RETURN(State::Location location,
                   state_->Wait(block, state_->shape.num_slices, deadline));
  std::vector<std::byte> copy;
  ASSIGN_OR_RETURN(const std::byte* slot, HostSlot(location, state_->shape, &copy));
  absl::Status verified = transfer::VerifySlot(slot, state_->Identity(block, location));
  RETURN_IF_ERROR(state_->CheckCurrent(block, location));
  if (!verified.ok()) state_->ReportBad(block);
  return verified;
}

absl::Status Lease::CheckPage(uint32_t block, std::span<const uint64_t> slice_checksums,
                              absl::Time deadline) {
  ASSIGN_OR_RETURN(State::Location location,
                   state_->Wait(block, state_->shape.num_slices, deadline));
  if (slice_checksums.size() != state_->shape.num_slices) {
    return absl::InvalidArgumentError(absl::StrCat(slice_checksums.size(), " checksums of ",
                                                   state_->shape.num_slices, " slices"));
  }
  const uint64_t found = transfer::PageChecksum(
      reinterpret_cast<const std::byte*>(slice_checksums.data()), state_->shape.num_slices,
      transfer::BlockSeed(state_->fingerprint, state_->hashes[block]));
  RETURN_IF_ERROR(state_->CheckCurrent(block, location));
  if (found == location.page_checksum) return absl::OkStatus();
  state_->ReportBad(block);
  return absl::DataLossError(absl::StrCat("block ", block, ": bytes differ from their checksum"));
}

bool Lease::IsCurrent(uint32_t block) const {
  std::optional<State::Location> location = state_->Now(block);
  return location.has_value() && state_->CheckCurrent(block, *location).ok();
}

}  // namespace kvstore::client
