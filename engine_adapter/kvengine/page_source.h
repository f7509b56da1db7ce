// Where `kvengine generate` chooses the source of its pages: the one place that knows whether there
// is a store.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/paging/prefix_cache.h"

namespace kvstore::engine {

// A cache for one sequence. Called after the model is loaded and before the request arrives, so
// connecting is not part of TTFT. `weights` give the revision that keeps models apart; `backend`
// the layout and the numerics class.
absl::StatusOr<std::unique_ptr<PrefixCache>> OpenPrefixCache(const GenerateCommand& command,
                                                             Backend& backend,
                                                             const ModelWeights& weights);

}  // namespace kvstore::engine
