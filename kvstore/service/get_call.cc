#include "kvstore/service/get_call.h"

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"
#include "kvstore/service/translate.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::service {

grpc::ServerWriteReactor<v1::GetResponse>* GetCall::Start(
    const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
    const v1::GetRequest& request) {
  std::shared_ptr<GetCall> call(new GetCall(parts));
  call->Hold();
  call->EndIfRefused(call->Prepare(caller, context, request));
  return call.get();
}

absl::Status GetCall::Prepare(const Caller& caller, const grpc::CallbackServerContext& context,
                              const v1::GetRequest& request) {
  // A piece as we have it, and as gRPC has it until it is sent.
  ASSIGN_OR_RETURN(scope_, EnterCall(parts_, caller, context, CallKind::kBulk,
                                     request.ByteSizeLong() + 2 * kPieceBytesMax));
  scope_.request_bytes = request.ByteSizeLong();
  ASSIGN_OR_RETURN(NamespaceKey key, ReadNamespaceRef(request.namespace_(), scope_.salt));
  ASSIGN_OR_RETURN(BlockKeys blocks, ReadBlockKeys(request.hashes(), request.tokens()));
  EndAtServerDeadline();
  const bool is_posted = scope_.TryPost(
      parts_.core_queue,
      [self = shared_from_this(), key = std::move(key), blocks = std::move(blocks)]() mutable {
        if (self->is_cancelled()) return;
        ResolveBlocks(self->parts_.store, self->parts_.core, self->edge_, self->scope_.tenant,
                      std::move(key), std::move(blocks),
                      [self](absl::StatusOr<ResolvedBlocks> resolved) {
                        self->StartOnCore(std::move(resolved));
                      });
      });
  return is_posted ? absl::OkStatus() : CoreIsBusy();
}

void GetCall::StartOnCore(absl::StatusOr<ResolvedBlocks> resolved) {
  std::shared_ptr<GetCall> self = shared_from_this();
  absl::Status status = resolved.status();
  absl::StatusOr<SessionId> session =
      status.ok() ? parts_.store.OpenSession(scope_.tenant) : absl::StatusOr<SessionId>(status);
  if (!session.ok()) {
    edge_.Post([self, why = session.status()] { self->End(why); });
    return;
  }
  const store::MatchResult match = parts_.store.Match(resolved->ns.id, resolved->hashes);
  const NamespaceId ns = resolved->ns.id;
  const std::vector<BlockHash> hashes = resolved->hashes;
  edge_.Post([self, id = *session, blocks = *std::move(resolved), match]() mutable {
    self->OnStarted(id, std::move(blocks), match);
  });
  parts_.store.Acquire(*session, ns, hashes, store::AcquireOptions{},
                       [self](const store::AcquireUpdate& update) {
                         self->edge_.Post([self, update] { self->OnUpdate(update); });
                       });
}

void GetCall::OnStarted(SessionId session, ResolvedBlocks resolved,
                        const store::MatchResult& match) {
  session_.Opened(session);
  ns_ = std::move(resolved.ns);
  hashes_ = std::move(resolved.hashes);
  match_ = match;
  renewed_ = parts_.clock.Now();
  if (has_ended()) return;
  if (ns_.spec.shape.page_bytes() > kPieceBytesMax) {
    if (absl::Status grown = scope_.ticket.Grow(ns_.spec.shape.page_bytes()); !grown.ok())
      return End(grown);
    page_.resize(ns_.spec.shape.page_bytes());
  }
}

void GetCall::OnUpdate(const store::AcquireUpdate& update) {
  if (has_ended()) return;
  if (update.is_first && update.is_last && !update.status.ok() && update.matched_blocks == 0)
    return End(update.status);
  if (update.is_first) {
    has_first_update_ = true;
    lease_ = update.lease;
    ready_.resize(update.matched_blocks);
    match_.matched_blocks = update.matched_blocks;
  }
  matched_blocks_ = update.matched_blocks;
  for (const auto& ready : update.ready) {
    if (ready.block < ready_.size()) ready_[ready.block] = ready.location;
  }
  Pump();
}

void GetCall::Pump() {
  if (has_ended() || is_writing_ || !has_first_update_) return;
  if (!is_header_sent_) return WriteHeader();
  if (page_sent_bytes_ > 0 || (next_block_ < matched_blocks_ && ready_[next_block_].has_value()))
    return FillPiece();
  if (next_block_ >= matched_blocks_) return WriteEnd();
  // The next page is on its way up: an update will come.
}

void GetCall::WriteHeader() {
  is_header_sent_ = true;
  v1::GetResponse::Header* header = message_.mutable_header();
  header->set_matched_blocks(match_.matched_blocks);
  header->set_matched_tokens(uint64_t{match_.matched_blocks} * ns_.spec.block_tokens);
  header->set_page_bytes(ns_.spec.shape.page_bytes());
  WriteTierCounts(match_.by_tier, header->mutable_by_tier());
  Write();
}

// Small pages: as many as fit into one piece. Large ones: the next piece of the page.
void GetCall::FillPiece() {
  KeepLease();
  const size_t page_bytes = ns_.spec.shape.page_bytes();
  std::string* data = message_.mutable_data();
  if (page_bytes > kPieceBytesMax) {
    if (page_sent_bytes_ == 0 && !LoadPage(next_block_, reinterpret_cast<std::byte*>(page_.data())))
      return WriteEnd();
    const size_t bytes = std::min(kPieceBytesMax, page_bytes - page_sent_bytes_);
    data->assign(page_, page_sent_bytes_, bytes);
    page_sent_bytes_ += bytes;
    if (page_sent_bytes_ == page_bytes) {
      page_sent_bytes_ = 0;
      ++next_block_;
    }
    return Write();
  }
  const size_t pages_max = kPieceBytesMax / page_bytes;
  size_t pages = 0;
  while (pages < pages_max && next_block_ + pages < matched_blocks_ &&
         ready_[next_block_ + pages].has_value())
    ++pages;
  data->resize(pages * page_bytes);
  for (size_t i = 0; i < pages; ++i) {
    if (LoadPage(next_block_, reinterpret_cast<std::byte*>(data->data()) + i * page_bytes)) {
      ++next_block_;
      continue;
    }
    data->resize(i * page_bytes);
    break;
  }
  if (data->empty()) return WriteEnd();
  Write();
}

// False: the page is bad and the prefix ends before it.
bool GetCall::LoadPage(uint32_t block, std::byte* page) {
  const store::PageLocation& location = *ready_[block];
  PageIdentity expect;
  expect.shape = ns_.spec.shape;
  expect.fingerprint = ns_.fingerprint;
  expect.hash = hashes_[block];
  expect.block_index = block;
  expect.page_checksum = location.page_checksum;
  if (location.address != nullptr && transfer::CopyFromSlot(page, location.address, expect).ok())
    return true;
  matched_blocks_ = block;
  parts_.core.Post([&store = parts_.store, session = session_.id(), lease = lease_, block] {
    store.Release(session, lease, std::vector<uint32_t>{block}).IgnoreError();
  });
  return false;
}

void GetCall::WriteEnd() {
  message_.set_delivered_blocks(next_block_);
  if (TakeEnd(absl::StatusCode::kOk))
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
}

void GetCall::Write() {
  is_writing_ = true;
  StartWrite(&message_);
}

// A slow reader holds its pages for as long as its deadline lets it.
void GetCall::KeepLease() {
  const absl::Time now = parts_.clock.Now();
  if (now - renewed_ < parts_.lease_time / 3) return;
  renewed_ = now;
  parts_.core.Post([&store = parts_.store, session = session_.id(), lease = lease_] {
    store.Renew(session, lease).IgnoreError();
  });
}

void GetCall::OnWriteDone(bool ok) {
  edge_.Post([self = shared_from_this(), ok] {
    self->is_writing_ = false;
    if (!ok) return self->End(ClientHasGone());
    self->Pump();
  });
}

}  // namespace kvstore::service
