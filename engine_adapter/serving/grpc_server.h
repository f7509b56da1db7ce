// GrpcServer serves Engine.Generate (proto/kvstore/v1/engine.proto).
//
// Who may call: on a Unix socket (made with mode 0600 under the process's umask) the same user; on a
// loopback port every local process; with an API key those that have it, from anywhere. No TLS.
//
// Threads: gRPC's; prompts are tokenized on `edge`'s. Confined to its owner's thread.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine_adapter/serving/completion_service.h"
#include "engine_adapter/serving/task_threads.h"

namespace kvstore::engine {

struct GrpcServerOptions {
  std::string address;  // "unix:PATH" or "HOST:PORT"
  std::string api_key;  // empty: none is asked for
  int64_t block_tokens = 0;
  int message_bytes_max = 8 << 20;
};

class GrpcServer {
 public:
  // What is referred to outlives it. Errors: Unavailable, it does not listen.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options,
                                                           CompletionService& service,
                                                           TaskThreads& edge);
  ~GrpcServer();     // cancels calls that have not ended a second later
  int port() const;  // 0 on a Unix socket

 private:
  struct State;
  explicit GrpcServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvstore::engine
