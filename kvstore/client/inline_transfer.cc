#include "kvstore/client/inline_transfer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/wire.h"

namespace kvstore::client {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

// A call's place in the connection's list, for cancellation.
class CallGuard {
 public:
  CallGuard(Connection& connection, grpc::ClientContext* context)
      : connection_(connection), context_(context), has_begun_(connection.BeginCall(context)) {}
  ~CallGuard() {
    if (has_begun_) connection_.EndCall(context_);
  }
  CallGuard(const CallGuard&) = delete;
  CallGuard& operator=(const CallGuard&) = delete;
  bool has_begun() const { return has_begun_; }

 private:
  Connection& connection_;
  grpc::ClientContext* const context_;
  const bool has_begun_;
};

// Where the pages of a Get go, with the checks that a daemon's stream must pass.
class PageSink {
 public:
  PageSink(std::span<std::byte> pages, uint64_t page_bytes, size_t blocks)
      : pages_(pages), page_bytes_(page_bytes), blocks_(blocks) {}

  absl::Status Take(const v1::GetResponse& message) {
    if (message.has_header()) return TakeHeader(message.header());
    if (!has_header_) return Broken("data before the header");
    if (message.part_case() == v1::GetResponse::kDeliveredBlocks)
      return TakeEnd(message.delivered_blocks());
    const std::string& data = message.data();
    if (is_ended_ || data.size() > uint64_t{result_.match.matched_blocks} * page_bytes_ - received_)
      return Broken("more data than it announced");
    std::memcpy(pages_.data() + received_, data.data(), data.size());
    received_ += data.size();
    return absl::OkStatus();
  }
  absl::StatusOr<GetResult> Finish() const {
    if (!is_ended_) return Broken("no end");
    return result_;
  }

 private:
  static absl::Status Broken(const char* why) {
    return absl::UnavailableError(absl::StrCat("the daemon's Get stream is broken: ", why));
  }

  absl::Status TakeHeader(const v1::GetResponse::Header& header) {
    if (has_header_) return Broken("two headers");
    if (header.page_bytes() != page_bytes_ || header.matched_blocks() > blocks_)
      return Broken("a header that does not fit the request");
    has_header_ = true;
    result_.match.matched_blocks = header.matched_blocks();
    result_.match.matched_tokens = header.matched_tokens();
    result_.match.page_bytes = header.page_bytes();
    ReadTierCounts(header.by_tier(), &result_.match.by_tier);
    return absl::OkStatus();
  }
  absl::Status TakeEnd(uint32_t delivered) {
    if (is_ended_ || uint64_t{delivered} * page_bytes_ != received_)
      return Broken("its end does not fit its data");
    is_ended_ = true;
    result_.delivered_blocks = delivered;
    return absl::OkStatus();
  }

  const std::span<std::byte> pages_;
  const uint64_t page_bytes_;
  const size_t blocks_;
  GetResult result_;
  uint64_t received_ = 0;
  bool has_header_ = false;
  bool is_ended_ = false;
};

}  // namespace

absl::StatusOr<PutResult> InlinePut(Connection& connection, const Namespace& ns,
                                    std::span<const BlockHash> hashes,
                                    std::span<const std::byte> pages, absl::Duration timeout) {
  grpc::ClientContext context;
  connection.Prepare(&context, nullptr, timeout);
  CallGuard guard(connection, &context);
  if (!guard.has_begun()) return absl::CancelledError("the client is being destroyed");
  v1::PutResponse response;
  std::unique_ptr<grpc::ClientWriter<v1::PutRequest>> writer =
      connection.stub().Put(&context, &response);
  v1::PutRequest message;
  FillRef(ns, message.mutable_header()->mutable_namespace_());
  message.mutable_header()->set_hashes(HashBytes(hashes));
  bool is_open = writer->Write(message);
  // A false Write: the daemon has ended the call; Finish() tells why, or that it stored what it
  // could.
  for (size_t sent = 0; is_open && sent < pages.size();) {
    const size_t bytes = std::min(kPieceBytes, pages.size() - sent);
    message.set_data(pages.data() + sent, bytes);
    is_open = writer->Write(message);
    sent += bytes;
  }
  if (is_open) writer->WritesDone();
  RETURN_IF_ERROR(FromGrpc(writer->Finish()));
  return PutResult{.blocks = response.blocks(),
                   .stored_blocks = response.stored_blocks(),
                   .existing_blocks = response.existing_blocks()};
}

absl::StatusOr<GetResult> InlineGet(Connection& connection, const Namespace& ns,
                                    std::span<const BlockHash> hashes, std::span<std::byte> pages,
                                    absl::Duration timeout) {
  grpc::ClientContext context;
  connection.Prepare(&context, nullptr, timeout);
  CallGuard guard(connection, &context);
  if (!guard.has_begun()) return absl::CancelledError("the client is being destroyed");
  v1::GetRequest request;
  FillRef(ns, request.mutable_namespace_());
  request.set_hashes(HashBytes(hashes));
  std::unique_ptr<grpc::ClientReader<v1::GetResponse>> reader =
      connection.stub().Get(&context, request);
  PageSink sink(pages, ns.spec.shape.page_bytes(), hashes.size());
  v1::GetResponse message;
  absl::Status taken;
  while (taken.ok() && reader->Read(&message)) taken = sink.Take(message);
  if (!taken.ok()) context.TryCancel();
  absl::Status finished = FromGrpc(reader->Finish());
  if (!taken.ok()) return taken;
  RETURN_IF_ERROR(finished);
  return sink.Finish();
}

}  // namespace kvstore::client
