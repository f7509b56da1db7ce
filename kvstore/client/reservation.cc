#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/reservation_state.h"
#include "kvstore/client/wire.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::client {

absl::StatusOr<std::shared_ptr<Reservation::State>> Reservation::State::Make(
    std::shared_ptr<Connection> connection, std::shared_ptr<MemorySession> session,
    const Namespace& ns, const v1::ReserveRequest& request, const v1::ReserveResponse& response) {
  const size_t count = request.hashes().size() / BlockHash::kBytes;
  RETURN_IF_ERROR(CheckReserved(response, count));
  auto state = std::make_shared<State>();
  state->connection = std::move(connection);
  state->session = std::move(session);
  state->fingerprint = ns.fingerprint;
  state->shape = ns.spec.shape;
  state->tier = static_cast<Tier>(request.tier() - 1);
  state->first_block_index = request.first_block_index();
  if (!request.parent().empty()) {
    state->parent.emplace();
    std::memcpy(state->parent->bytes.data(), request.parent().data(), BlockHash::kBytes);
  }
  state->hashes.resize(count);
  std::memcpy(state->hashes.data(), request.hashes().data(), request.hashes().size());
  state->blocks.resize(count);
  state->reservation = response.reservation();
  for (size_t i = 0; i < count; ++i) {
    // The wire's enumerators are ours plus one.
    state->blocks[i] = {.state = static_cast<BlockState>(response.state()[i] - 1),
                        .slab = response.slab(static_cast<int>(i)),
                        .slot = response.slot(static_cast<int>(i)),
                        .page_checksum = std::nullopt};
    if (state->blocks[i].state == BlockState::kReserved) ++state->uncommitted_blocks;
  }
  return state;
}

absl::Status Reservation::State::Place(Block* block, std::shared_ptr<const MappedSlab> slab) {
  const std::optional<uint64_t> offset = SlotOffset(block->slot, shape, slab->bytes());
  if (!offset.has_value()) return absl::UnavailableError("Reserve: a slot outside of its slab");
  block->device = slab->device();
  block->offset = *offset;
  block->address = slab->data() == nullptr ? nullptr : slab->data() + *offset;
  if (slabs.empty() || slabs.back() != slab) slabs.push_back(std::move(slab));
  return absl::OkStatus();
}

bool Reservation::State::MapCached() {
  for (Block& block : blocks) {
    if (block.state != BlockState::kReserved) continue;
    std::shared_ptr<const MappedSlab> slab =
        session->CachedSlab(static_cast<uint32_t>(tier), block.slab);
    if (slab == nullptr || !Place(&block, std::move(slab)).ok()) return false;
  }
  return true;
}

absl::Status Reservation::State::Map(absl::Duration timeout) {
  for (Block& block : blocks) {
    if (block.state != BlockState::kReserved || block.is_placed()) continue;
    ASSIGN_OR_RETURN(std::shared_ptr<const MappedSlab> slab,
                     session->Slab(static_cast<uint32_t>(tier), block.slab, timeout));
    RETURN_IF_ERROR(Place(&block, std::move(slab)));
  }
  return absl::OkStatus();
}

PageIdentity Reservation::State::Identity(size_t block) const {
  PageIdentity identity;
  identity.shape = shape;
  identity.fingerprint = fingerprint;
  identity.hash = hashes[block];
  if (block > 0) {
    identity.parent = hashes[block - 1];
  } else if (parent.has_value()) {
    identity.parent = *parent;
  }
  identity.block_index = first_block_index + static_cast<uint32_t>(block);
  return identity;
}

absl::Status Reservation::State::Commit(std::span<const uint32_t> positions, absl::Time deadline) {
  if (positions.empty()) return absl::OkStatus();
  if (reservation == 0) return absl::FailedPreconditionError("nothing is reserved");
  std::vector<uint32_t> sorted(positions.begin(), positions.end());
  std::ranges::sort(sorted);
  v1::CommitRequest request;
  request.set_reservation(reservation);
  for (size_t i = 0; i < sorted.size(); ++i) {
    const uint32_t position = sorted[i];
    if (position >= blocks.size() || (i > 0 && position == sorted[i - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", position, ": not one of ", blocks.size(), ", or given twice"));
    }
    if (!blocks[position].page_checksum.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", position, " was neither filled nor sealed"));
    }
    request.add_block(position);
    request.add_page_checksum(*blocks[position].page_checksum);
  }
  grpc::ClientContext context;
  connection->Prepare(&context, session.get(), TimeLeft(deadline, connection->options().deadline));
  if (!connection->BeginCall(&context))
    return absl::CancelledError("the client is being destroyed");
  v1::CommitResponse response;
  absl::Status status =
      connection->StatusOf(connection->stub().Commit(&context, request, &response), session);
  connection->EndCall(&context);
  if (!status.ok()) return status;
  uncommitted_blocks -= std::min(uncommitted_blocks, sorted.size());
  return absl::OkStatus();
}

void Reservation::State::Abort() {
  const uint64_t gone = std::exchange(reservation, 0);
  if (gone != 0 && uncommitted_blocks > 0) connection->AbortReservation(session, gone);
}

Reservation::Reservation(std::shared_ptr<State> state) : state_(std::move(state)) {}
Reservation::Reservation(Reservation&&) noexcept = default;
Reservation& Reservation::operator=(Reservation&&) noexcept = default;
Reservation::~Reservation() = default;

size_t Reservation::num_blocks() const { return state_->blocks.size(); }
Reservation::BlockState Reservation::state(size_t block) const {
  return state_->blocks[block].state;
}
std::byte* Reservation::slot(size_t block) const { return state_->blocks[block].address; }
uint64_t Reservation::device_slot(size_t block) const {
  const State::Block& target = state_->blocks[block];
  return target.device == nullptr ? 0 : target.device->address() + target.offset;
}

void Reservation::Fill(size_t block, const std::byte* page) {
  State::Block& target = state_->blocks[block];
  const PageIdentity identity = state_->Identity(block);
  if (target.address != nullptr) {
    target.page_checksum = transfer::CopyIntoSlot(target.address, page, identity);
  } else if (target.device != nullptr) {
    std::vector<std::byte> slot(state_->shape.slot_bytes());
    const uint64_t checksum = transfer::CopyIntoSlot(slot.data(), page, identity);
    if (target.device->Write(target.offset, slot.data(), slot.size()).ok())
      target.page_checksum = checksum;
  }
}

void Reservation::Seal(size_t block) {
  State::Block& target = state_->blocks[block];
  const PageIdentity identity = state_->Identity(block);
  if (target.address != nullptr) {
    target.page_checksum = transfer::SealSlot(target.address, identity);
  } else if (target.device != nullptr) {
    const uint64_t page_bytes = state_->shape.page_bytes();
    std::vector<std::byte> slot(state_->shape.slot_bytes());
    if (!target.device->Read(target.offset, slot.data(), page_bytes).ok()) return;
    const uint64_t checksum = transfer::SealSlot(slot.data(), identity);
    const absl::Status written = target.device->Write(
        target.offset + page_bytes, slot.data() + page_bytes, slot.size() - page_bytes);
    if (written.ok()) target.page_checksum = checksum;
  }
}

void Reservation::Seal(size_t block, std::span<const uint64_t> slice_checksums) {
  State::Block& target = state_->blocks[block];
  const PageShape& shape = state_->shape;
  if (slice_checksums.size() != shape.num_slices || !target.is_placed()) return;
  const PageIdentity identity = state_->Identity(block);
  const uint64_t page_bytes = shape.page_bytes();
  if (target.address != nullptr) {
    target.page_checksum =
        transfer::SealTail(target.address + page_bytes, slice_checksums, identity);
    return;
  }
  std::vector<std::byte> tail(shape.slot_bytes() - page_bytes);
  const uint64_t checksum = transfer::SealTail(tail.data(), slice_checksums, identity);
  if (target.device->Write(target.offset + page_bytes, tail.data(), tail.size()).ok())
    target.page_checksum = checksum;
}

absl::Status Reservation::Commit(std::span<const uint32_t> blocks, absl::Time deadline) {
  return state_->Commit(blocks, deadline);
}

absl::Status Reservation::CommitAll(absl::Time deadline) {
  std::vector<uint32_t> filled;
  for (uint32_t i = 0; i < state_->blocks.size(); ++i) {
    if (state_->blocks[i].state == BlockState::kReserved) filled.push_back(i);
  }
  return state_->Commit(filled, deadline);
}

void Reservation::Abort() { state_->Abort(); }

}  // namespace kvstore::client
