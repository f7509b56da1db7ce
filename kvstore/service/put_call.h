// One inline Put: takes pages from a stream straight into reserved slots, under a session of its
// own, and publishes them a window at a time. Whatever ends the call before its last window is
// committed gives the reserved slots back (the session is closed).
//
//   header -> core: resolve, open session -> [ core: commit the last window, reserve the next ->
//   pieces fill its slots ]* -> reply
//
// While the core works no piece is read: back-pressure reaches the client through HTTP/2 flow
// control.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kvstore/service/resolve.h"
#include "kvstore/service/stream_call.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {

class PutCall final : public StreamCall<PutCall, grpc::ServerReadReactor<v1::PutRequest>> {
 public:
  static grpc::ServerReadReactor<v1::PutRequest>* Start(const CallParts& parts,
                                                        const Caller& caller,
                                                        const grpc::CallbackServerContext& context,
                                                        v1::PutResponse* response);
  void OnReadDone(bool ok) override;

 private:
  friend class StreamCall;
  PutCall(const CallParts& parts, v1::PutResponse* response)
      : StreamCall(parts, Operation::kPut), response_(response), session_(parts) {}
  absl::Status Prepare(const Caller& caller, const grpc::CallbackServerContext& context);

  // Edge thread.
  void OnMessage(bool ok);
  absl::Status OnHeader(const v1::PutRequest::Header& header);
  void OnStarted(SessionId session, ResolvedBlocks resolved);
  void OnDataEnd();
  void Consume();
  void TakeBytes();
  void NextWindow();
  void OnWindow(absl::Status committed, absl::StatusOr<store::ReserveResult> reserved);
  absl::Status DataGoesOn() const;
  void EndStored();
  void OnGone() override { session_.CallIsDone(); }
  uint32_t num_blocks() const { return static_cast<uint32_t>(hashes_.size()); }
  uint32_t window_end() const {
    return window_begin_ + static_cast<uint32_t>(window_.blocks.size());
  }

  // Edge thread.
  v1::PutResponse* const response_;  // not after the end
  v1::PutRequest message_;
  std::string_view unread_;  // of message_.data()
  bool has_header_ = false;
  SessionOfCall session_;
  store::Store::OpenedNamespace ns_;
  std::vector<BlockHash> hashes_;
  store::ReserveResult window_;  // of blocks [window_begin_, window_end())
  uint32_t window_begin_ = 0;
  uint32_t block_ = 0;                      // being filled
  uint64_t page_offset_ = 0;                // bytes of it that are there
  std::vector<store::CommitBlock> sealed_;  // of the window
  bool is_full_ = false;                    // the store had no space at block_
  bool is_complete_ = false;  // all blocks are committed: the client's half-close is to come
  uint32_t stored_blocks_ = 0;
  uint32_t existing_blocks_ = 0;
};

}  // namespace kvstore::service
