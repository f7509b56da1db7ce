// `kvengine generate`: one request, from prompt to report.
#pragma once

#include <absl/status/statusor.h>

#include <string>

#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/kvengine/engine.h"
#include "engine_adapter/llama/generate.h"

namespace kvstore::engine {

struct Answer {
  GenerateResult result;
  std::string text;
};

// Runs the request on an engine that is ready; command.engine is not read. Text goes to standard
// output as it comes, unless the command wants JSON. Errors: those of the prompt, of Generate(), and
// of the files that are to be written.
absl::StatusOr<Answer> RunRequest(const Engine& engine, const GenerateCommand& command);

// Loads the engine, runs and reports. Returns the exit code.
int RunGenerateCommand(const GenerateCommand& command);

}  // namespace kvstore::engine
