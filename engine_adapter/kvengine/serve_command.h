// `kvengine serve`: load the model, answer requests until SIGTERM.
//
// Derived where not given: the context is what the model has, or what --kv-memory holds if that is
// less. Says "serving" with its addresses on standard error when it is ready.
#pragma once

#include "engine_adapter/kvengine/command_line.h"

namespace kvstore::engine {

// Returns the exit code: kExitDone after a drain, also one that was cut short.
int RunServeCommand(const ServeCommand& command);

}  // namespace kvstore::engine
