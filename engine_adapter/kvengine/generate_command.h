// `kvengine generate`: load the model, run one request, report.
#pragma once

#include "engine_adapter/kvengine/command_line.h"

namespace kvstore::engine {

// Returns the exit code; everything has been said on stdout and stderr.
int RunGenerateCommand(const GenerateCommand& command);

}  // namespace kvstore::engine
