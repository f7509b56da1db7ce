// `kvengine batch`: many requests in one process, one after another. A request that fails is answered
// with its error, and the next one is run.
#pragma once

#include "engine_adapter/kvengine/command_line.h"

namespace kvstore::engine {

// Returns the exit code: kExitFailed if the engine could not be loaded, or a request failed.
int RunBatchCommand(const BatchCommand& command);

}  // namespace kvstore::engine
