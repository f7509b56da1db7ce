// GenerateCall is one Engine.Generate call: gRPC's side of a request and its answer.
//
// One message at a time is on its way to the client; what the engine makes meanwhile goes into the
// next one, so a client that does not read costs its answer's text and no more.
//
// Threads: gRPC's, an edge thread, the engine's. Deletes itself when gRPC and the engine are done.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine_adapter/serving/completion_service.h"
#include "engine_adapter/serving/task_threads.h"
#include "kvstore/v1/engine.pb.h"

namespace kvstore::engine {

class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Begins the call; `request` may end with this function. `service` outlives the call. The reactor
  // is gRPC's to use until it is done.
  static GenerateCall* Start(const v1::GenerateRequest& request, int64_t block_tokens,
                             CompletionService& service, TaskThreads& edge);
  // A call that ends with an error at once.
  static GenerateCall* Refuse(CompletionService& service, const absl::Status& why);

 private:
  GenerateCall(CompletionService& service, int64_t block_tokens)
      : service_(service), block_tokens_(block_tokens) {}

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Submit(const CompletionRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  void SendNews() ABSL_LOCKS_EXCLUDED(mutex_);
  // The next message in message_, or nothing to do.
  bool TakeNews() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishOnce(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  CompletionService& service_;
  const int64_t block_tokens_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone()

  absl::Mutex mutex_;
  std::shared_ptr<AnswerStream> answer_ ABSL_GUARDED_BY(mutex_);
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_last_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
  // Whoever has set is_writing_ writes it; gRPC reads it until OnWriteDone().
  v1::GenerateResponse message_;
};

}  // namespace kvstore::engine
