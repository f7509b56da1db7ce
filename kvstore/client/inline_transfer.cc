#include "kvstore/client/inline_transfer.h"

#include <algorithm>

#include "kvstore/base/status_macros.h"
#include "kvstore/client/page_sink.h"
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
