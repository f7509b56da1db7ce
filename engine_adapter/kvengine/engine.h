// Engine is a model on a device, with its tokenizer and its connection to a daemon: everything that is
// ready before a request arrives.
//
// Threads: externally synchronised. It outlives the page caches that it makes.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "engine_adapter/connector/store_connection.h"
#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/kvengine/engine_device.h"
#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "engine_adapter/tokenizer/tokenizer.h"

namespace kvstore::engine {

class Engine {
 public:
  // Says on standard error why a daemon that was asked for cannot be used; that is no error.
  // Errors: those of the model's files and of the back-end.
  static absl::StatusOr<Engine> Load(const EngineOptions& options);

  Backend& backend() const { return *device_.backend; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  // For one sequence: backed by the daemon where there is one.
  std::unique_ptr<PrefixCache> MakePrefixCache() const;

 private:
  Engine(std::unique_ptr<ModelWeights> weights, EngineDevice device, Tokenizer tokenizer)
      : weights_(std::move(weights)),
        device_(std::move(device)),
        tokenizer_(std::move(tokenizer)) {}
  absl::Status Connect(const EngineOptions& options);

  std::unique_ptr<ModelWeights> weights_;
  EngineDevice device_;
  Tokenizer tokenizer_;
  std::shared_ptr<StoreConnection> connection_;  // null: no store
};

}  // namespace kvstore::engine
