// The table of configuration keys. Adding a key is adding a row in config_keys.cc.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/daemon/config.h"

namespace kvstore::daemon {

// Lists come as their elements, everything else as one text.
struct ConfigKey {
  std::string_view name;          // "tier.dram.bytes"
  std::string_view type;          // for people
  std::string_view default_text;  // for people; the value itself is the default of Config or set by
                                  // ApplyMachineDefaults()
  std::string_view valid;         // range or choices
  std::string_view meaning;
  bool is_list = false;
  bool is_live = false;  // taken over on SIGHUP
  // Errors: InvalidArgument, why the value is not valid; the caller adds key, value and `valid`.
  std::function<absl::Status(const std::vector<std::string>& value, const Machine& machine,
                             Config* config)>
      parse;
  // The effective value as one would write it.
  std::function<std::string(const Config& config)> print;
};

std::span<const ConfigKey> ConfigKeys();
// Null if there is none.
const ConfigKey* FindConfigKey(std::string_view name);
// Defaults that depend on the machine: DRAM size, socket path.
void ApplyMachineDefaults(const Machine& machine, Config* config);
// Rules over several keys.
absl::Status CheckConfig(const Config& config, const Machine& machine);

}  // namespace kvstore::daemon
