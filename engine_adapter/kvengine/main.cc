#include <variant>

#include "engine_adapter/kvengine/batch_command.h"
#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/kvengine/generate_command.h"
#include "engine_adapter/kvengine/serve_command.h"

namespace {

using namespace kvstore::engine;

struct RunCommand {
  int operator()(int exit_code) const { return exit_code; }
  int operator()(const GenerateCommand& command) const { return RunGenerateCommand(command); }
  int operator()(const BatchCommand& command) const { return RunBatchCommand(command); }
  int operator()(const ServeCommand& command) const { return RunServeCommand(command); }
};

}  // namespace

int main(int argc, char** argv) { return std::visit(RunCommand(), ParseCommandLine(argc, argv)); }
