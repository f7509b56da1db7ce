#include "kvstore/service/put_call.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/service/translate.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::service {
namespace {

// Small enough that a slow client holds little, large enough that the core is asked seldom.
constexpr uint64_t kWindowBytes = uint64_t{16} << 20;
constexpr uint64_t kWindowBlocksMax = 1024;

}  // namespace

grpc::ServerReadReactor<v1::PutRequest>* PutCall::Start(const CallParts& parts,
                                                        const Caller& caller,
                                                        const grpc::CallbackServerContext& context,
                                                        v1::PutResponse* response) {
  std::shared_ptr<PutCall> call(new PutCall(parts, response));
  call->Hold();
  const absl::Status status = call->Prepare(caller, context);
  call->EndIfRefused(status);
  if (status.ok()) call->StartRead(&call->message_);
  return call.get();
}

absl::Status PutCall::Prepare(const Caller& caller, const grpc::CallbackServerContext& context) {
  // The header is not here yet: count a piece.
  ASSIGN_OR_RETURN(scope_, EnterCall(parts_, caller, context, CallKind::kBulk, kPieceBytesMax));
  EndAtServerDeadline();
  return absl::OkStatus();
}

void PutCall::OnReadDone(bool ok) {
  edge_.Post([self = shared_from_this(), ok] { self->OnMessage(ok); });
}

void PutCall::OnMessage(bool ok) {
  if (has_ended()) return;
  if (is_complete_) return ok ? End(DataGoesOn()) : EndStored();
  if (!ok) return OnDataEnd();
  if (!has_header_) {
    has_header_ = true;
    if (!message_.has_header())
      return End(absl::InvalidArgumentError("the first message must be the header"));
    absl::Status status = OnHeader(message_.header());
    // Megabytes of hashes, which the call now has in its own form.
    v1::PutRequest().Swap(&message_);
    if (!status.ok()) End(status);
    return;
  }
  if (message_.has_header()) return End(absl::InvalidArgumentError("a second header"));
  if (message_.data().size() > kPieceBytesMax) {
    return End(absl::InvalidArgumentError(absl::StrCat(
        "data: ", message_.data().size(), " bytes; at most ", kPieceBytesMax, " a message")));
  }
  unread_ = message_.data();
  Consume();
}

absl::Status PutCall::OnHeader(const v1::PutRequest::Header& header) {
  RETURN_IF_ERROR(scope_.ticket.Grow(header.ByteSizeLong()));
  ASSIGN_OR_RETURN(NamespaceKey key, ReadNamespaceRef(header.namespace_(), scope_.salt));
  ASSIGN_OR_RETURN(BlockKeys blocks, ReadBlockKeys(header.hashes(), header.tokens()));
  scope_.request_bytes = header.ByteSizeLong();
  const bool is_posted = scope_.TryPost(
      parts_.core_queue,
      [self = shared_from_this(), key = std::move(key), blocks = std::move(blocks)]() mutable {
        if (self->is_cancelled()) return;
        ResolveBlocks(self->parts_.store, self->parts_.core, self->edge_, self->scope_.tenant,
                      std::move(key), std::move(blocks),
                      [self](absl::StatusOr<ResolvedBlocks> resolved) {
                        absl::Status status = resolved.status();
                        absl::StatusOr<SessionId> session =
                            status.ok() ? self->parts_.store.OpenSession(self->scope_.tenant)
                                        : absl::StatusOr<SessionId>(status);
                        self->edge_.Post([self, session, resolved = std::move(resolved)]() mutable {
                          if (!session.ok()) return self->End(session.status());
                          self->OnStarted(*session, *std::move(resolved));
                        });
                      });
      });
  return is_posted ? absl::OkStatus() : CoreIsBusy();
}

void PutCall::OnStarted(SessionId session, ResolvedBlocks resolved) {
  session_.Opened(session);
  ns_ = std::move(resolved.ns);
  hashes_ = std::move(resolved.hashes);
  if (has_ended()) return;
  if (hashes_.empty()) {
    response_->set_blocks(0);
    return End(absl::OkStatus());
  }
  NextWindow();
}

void PutCall::OnDataEnd() {
  if (!has_header_) return End(absl::InvalidArgumentError("the stream ended before the header"));
  End(absl::InvalidArgumentError(absl::StrCat("data ended ", page_offset_, " bytes into block ",
                                              block_, " of ", num_blocks())));
}

// Fills slots until the message or the window is used up.
void PutCall::Consume() {
  while (!unread_.empty() && block_ < window_end()) TakeBytes();
  if (block_ >= window_end()) return NextWindow();
  StartRead(&message_);
}

void PutCall::TakeBytes() {
  const store::ReserveResult::Block& target = window_.blocks[block_ - window_begin_];
  const uint64_t page_bytes = ns_.spec.shape.page_bytes();
  const size_t bytes =
      static_cast<size_t>(std::min<uint64_t>(unread_.size(), page_bytes - page_offset_));
  const bool is_ours = target.state == store::ReserveState::kReserved;
  if (is_ours) std::memcpy(target.location.address + page_offset_, unread_.data(), bytes);
  unread_.remove_prefix(bytes);
  page_offset_ += bytes;
  if (page_offset_ < page_bytes) return;
  if (is_ours) {
    PageIdentity identity;
    identity.shape = ns_.spec.shape;
    identity.fingerprint = ns_.fingerprint;
    identity.hash = hashes_[block_];
    if (block_ > 0) identity.parent = hashes_[block_ - 1];
    identity.block_index = block_;
    sealed_.push_back({.block = block_ - window_begin_,
                       .page_checksum = transfer::SealSlot(target.location.address, identity)});
  } else {
    ++existing_blocks_;
  }
  page_offset_ = 0;
  ++block_;
}

void PutCall::NextWindow() {
  const uint64_t blocks_max =
      std::clamp<uint64_t>(kWindowBytes / ns_.spec.shape.page_bytes(), 1, kWindowBlocksMax);
  const uint32_t begin = block_;
  const uint32_t end =
      is_full_ ? begin
               : static_cast<uint32_t>(std::min<uint64_t>(num_blocks(), begin + blocks_max));
  std::vector<BlockHash> hashes(hashes_.begin() + begin, hashes_.begin() + end);
  std::optional<BlockHash> parent;
  if (begin > 0) parent = hashes_[begin - 1];
  parts_.core.Post([self = shared_from_this(), session = session_.id(), ns = ns_.id,
                    reservation = window_.reservation, sealed = std::move(sealed_),
                    hashes = std::move(hashes), parent, begin]() mutable {
    store::Store& store = self->parts_.store;
    absl::Status committed =
        sealed.empty() ? absl::OkStatus() : store.Commit(session, reservation, sealed);
    absl::StatusOr<store::ReserveResult> reserved = store::ReserveResult{};
    if (committed.ok() && !hashes.empty()) {
      reserved = store.Reserve(session, ns, parent, begin, hashes, tiers::TierKind::kDram);
    }
    self->edge_.Post(
        [self, committed, count = sealed.size(), reserved = std::move(reserved)]() mutable {
          if (committed.ok()) self->stored_blocks_ += static_cast<uint32_t>(count);
          self->OnWindow(committed, std::move(reserved));
        });
  });
  sealed_.clear();
}

void PutCall::OnWindow(absl::Status committed, absl::StatusOr<store::ReserveResult> reserved) {
  if (has_ended()) return;
  if (!committed.ok()) return End(committed);
  if (!reserved.ok()) return End(reserved.status());
  window_ = *std::move(reserved);
  window_begin_ = block_;
  // Blocks past the first without space are not saved: a prefix ends there.
  const auto full = std::ranges::find(window_.blocks, store::ReserveState::kNoSpace,
                                      &store::ReserveResult::Block::state);
  if (full != window_.blocks.end()) {
    is_full_ = true;
    window_.blocks.erase(full, window_.blocks.end());
  }
  if (!window_.blocks.empty()) return Consume();
  if (block_ < num_blocks()) return EndStored();  // full: the rest of the data is not read
  if (!unread_.empty()) return End(DataGoesOn());
  is_complete_ = true;
  StartRead(&message_);
}

absl::Status PutCall::DataGoesOn() const {
  return absl::InvalidArgumentError(absl::StrCat("data goes on after block ", num_blocks() - 1,
                                                 ", the last one; a page has ",
                                                 ns_.spec.shape.page_bytes(), " bytes"));
}

void PutCall::EndStored() {
  if (stored_blocks_ + existing_blocks_ == 0) {
    return End(
        absl::ResourceExhaustedError("no page is free in the dram tier; wait or skip the save"));
  }
  response_->set_blocks(num_blocks());
  response_->set_stored_blocks(stored_blocks_);
  response_->set_existing_blocks(existing_blocks_);
  End(absl::OkStatus());
}

}  // namespace kvstore::service
