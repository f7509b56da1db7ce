// The command line of kvctl: which commands and flags there are. The only file of kvctl that knows
// the parser library.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "tools/kvctl/arguments.h"

namespace kvstore::kvctl {

// --help or --version was asked for: print `text`, exit 0.
struct HelpText {
  std::string text;
};
// The command line is wrong; `json` says whether --json is on it, so that the error can be told in
// the form that was asked for.
struct UsageError {
  absl::Status status;
  bool json = false;
};
std::variant<Arguments, HelpText, UsageError> ParseCommandLine(int argc, const char* const* argv);

// For shell completion.
struct OptionDescription {
  std::string flag;  // "--tokens"
  std::string description;
  bool takes_value = false;
  bool takes_file = false;
  std::vector<std::string> values;  // the valid ones, where they are few
};
struct CommandDescription {
  std::string name;
  std::string description;
  std::vector<OptionDescription> options;
  std::vector<std::string> values;  // of the first positional argument, where they are few
};
struct ProgramDescription {
  std::vector<OptionDescription> global_options;
  std::vector<CommandDescription> commands;
};
ProgramDescription DescribeProgram();

}  // namespace kvstore::kvctl
