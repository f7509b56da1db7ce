#include <variant>

#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/kvengine/generate_command.h"

int main(int argc, char** argv) {
  const auto parsed = kvstore::engine::ParseCommandLine(argc, argv);
  if (const int* exit_code = std::get_if<int>(&parsed)) return *exit_code;
  return kvstore::engine::RunGenerateCommand(std::get<kvstore::engine::GenerateCommand>(parsed));
}
