// One inline Get: leases the longest prefix under a session of its own and sends its pages, each
// checked before its first byte leaves.
//
// A page is copied out of its slot into memory that no client can write, and checked in the same
// pass: what is checked is what is sent. One write at a time; a reader that does not read holds one
// message and one page until its deadline.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvstore/service/resolve.h"
#include "kvstore/service/stream_call.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {

class GetCall final : public StreamCall<GetCall, grpc::ServerWriteReactor<v1::GetResponse>> {
 public:
  static grpc::ServerWriteReactor<v1::GetResponse>* Start(
      const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
      const v1::GetRequest& request);
  void OnWriteDone(bool ok) override;

 private:
  friend class StreamCall;
  explicit GetCall(const CallParts& parts) : StreamCall(parts, Operation::kGet), session_(parts) {}
  absl::Status Prepare(const Caller& caller, const grpc::CallbackServerContext& context,
                       const v1::GetRequest& request);
  // Core thread.
  void StartOnCore(absl::StatusOr<ResolvedBlocks> resolved);
  // Edge thread.
  void OnStarted(SessionId session, ResolvedBlocks resolved, const store::MatchResult& match);
  void OnUpdate(const store::AcquireUpdate& update);
  void Pump();
  void WriteHeader();
  void FillPiece();
  bool LoadPage(uint32_t block, std::byte* page);
  void WriteEnd();
  void Write();
  void KeepLease();
  void OnGone() override { session_.CallIsDone(); }

  // Edge thread.
  bool is_writing_ = false;
  bool is_header_sent_ = false;
  bool has_first_update_ = false;
  SessionOfCall session_;
  LeaseId lease_;
  absl::Time renewed_;
  store::Store::OpenedNamespace ns_;
  std::vector<BlockHash> hashes_;
  store::MatchResult match_;
  uint32_t matched_blocks_ = 0;  // shrinks when pages are lost
  std::vector<std::optional<store::PageLocation>> ready_;
  uint32_t next_block_ = 0;  // to be sent
  std::string page_;         // of a page larger than a piece
  size_t page_sent_bytes_ = 0;
  v1::GetResponse message_;
};

}  // namespace kvstore::service
