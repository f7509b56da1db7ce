// One inline Get: leases the longest prefix under a session of its own and sends its pages, each
// checked before its first byte leaves.
//
// A page is copied out of its slot into memory that no client can write, and checked in the same
// pass: what is checked is what is sent. One write at a time; a reader that does not read holds one
// message and one page until its deadline.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvstore/service/call.h"
#include "kvstore/service/resolve.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {

class GetCall final : public grpc::ServerWriteReactor<v1::GetResponse>,
                      public std::enable_shared_from_this<GetCall> {
 public:
  static grpc::ServerWriteReactor<v1::GetResponse>* Start(
      const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
      const v1::GetRequest& request);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit GetCall(const CallParts& parts) : parts_(parts), edge_(parts.edges.Next()) {
    scope_.entered = parts.clock.Now();  // should the call be refused
  }
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
  void End(const absl::Status& status);
  void CloseSession();

  const CallParts& parts_;
  Executor& edge_;
  CallScope scope_;
  std::atomic<bool> is_cancelled_{false};

  // Edge thread.
  bool has_ended_ = false;
  bool is_done_ = false;  // OnDone() has run
  bool is_writing_ = false;
  bool is_header_sent_ = false;
  bool has_first_update_ = false;
  std::optional<SessionId> session_;
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
  std::shared_ptr<GetCall> self_;  // until OnDone()
};

}  // namespace kvstore::service
