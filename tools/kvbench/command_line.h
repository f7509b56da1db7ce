// The command line of kvbench.
#pragma once

#include <string>
#include <variant>

#include "absl/status/status.h"
#include "tools/kvbench/settings.h"

namespace kvstore::bench {

struct HelpText {
  std::string text;
};

// Settings with every default filled in, what --help prints, or InvalidArgument.
std::variant<Settings, HelpText, absl::Status> ParseCommandLine(int argc, const char* const* argv);

}  // namespace kvstore::bench
