// Where `kvengine` makes the back-end that the command line names: the one place that knows which
// back-ends are in this build.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"

namespace kvstore::engine {

// `weights` must outlive the back-end. Errors: those of the back-end; FailedPrecondition, a device
// that this build has no back-end for.
absl::StatusOr<std::unique_ptr<Backend>> OpenDevice(const GenerateCommand& command,
                                                    const ModelConfig& config,
                                                    const ModelWeights& weights);

}  // namespace kvstore::engine
