// Where `kvengine` makes the back-end that the command line names: the one place that knows which
// back-ends are in this build.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"

namespace kvstore::engine {

// A back-end and what moves its pages from and to a daemon; members in the order of their ends.
struct EngineDevice {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<PageMover> page_mover;
  std::shared_ptr<client::DeviceSlabs> device_slabs;  // null: pages lie in this machine's memory
};

// `weights` must outlive the back-end. Errors: those of the back-end; FailedPrecondition, a device
// that this build has no back-end for.
absl::StatusOr<EngineDevice> OpenDevice(const EngineOptions& options, const ModelConfig& config,
                                        const ModelWeights& weights);

}  // namespace kvstore::engine
