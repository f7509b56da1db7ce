// Builders of configuration keys: one a type of value, so that a row of config_keys.cc reads as what
// it is. `Section` and `Field` are the members that the key sets, such as &Config::dram and
// &Config::Dram::bytes.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"
#include "kvstore/daemon/config_keys.h"
#include "kvstore/daemon/config_values.h"

namespace kvstore::daemon {

using Values = std::vector<std::string>;

template <auto Section, auto Field>
ConfigKey IntegerKey(std::string_view name, std::string_view default_text, std::string_view valid,
                     std::string_view meaning, std::pair<uint64_t, uint64_t> range) {
  return {.name = name,
          .type = "integer",
          .default_text = default_text,
          .valid = valid,
          .meaning = meaning,
          .parse = [range](const Values& v, const Machine&, Config* c) -> absl::Status {
            ASSIGN_OR_RETURN((c->*Section).*Field, ParseInteger(v[0], range.first, range.second));
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return absl::StrCat((c.*Section).*Field); }};
}

template <auto Section, auto Field>
ConfigKey DurationKey(std::string_view name, std::string_view default_text, std::string_view valid,
                      std::string_view meaning, std::pair<absl::Duration, absl::Duration> range) {
  return {.name = name,
          .type = "time",
          .default_text = default_text,
          .valid = valid,
          .meaning = meaning,
          .parse = [range](const Values& v, const Machine&, Config* c) -> absl::Status {
            ASSIGN_OR_RETURN(absl::Duration value, ParseDuration(v[0]));
            if (value < range.first || value > range.second) return OutOfRange();
            (c->*Section).*Field = value;
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return PrintDuration((c.*Section).*Field); }};
}

enum class Percent { kOfMemory, kRefused };

template <auto Section, auto Field>
ConfigKey BytesKey(std::string_view name, std::string_view default_text, std::string_view valid,
                   std::string_view meaning, Percent percent, std::pair<uint64_t, uint64_t> range) {
  return {.name = name,
          .type = "size",
          .default_text = default_text,
          .valid = valid,
          .meaning = meaning,
          .parse = [range, percent](const Values& v, const Machine& machine,
                                    Config* c) -> absl::Status {
            ASSIGN_OR_RETURN(
                uint64_t value,
                ParseBytes(v[0], percent == Percent::kOfMemory ? machine.memory_bytes : 0));
            if (value < range.first || value > range.second) return OutOfRange();
            (c->*Section).*Field = value;
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return PrintBytes((c.*Section).*Field); }};
}

template <auto Section, auto Field>
ConfigKey FileKey(std::string_view name, std::string_view default_text, std::string_view meaning) {
  return {.name = name,
          .type = "path",
          .default_text = default_text,
          .valid = "an absolute path; empty: none",
          .meaning = meaning,
          .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
            if (!v[0].empty() && !v[0].starts_with('/'))
              return absl::InvalidArgumentError("not an absolute path");
            (c->*Section).*Field = v[0];
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return (c.*Section).*Field; }};
}

// A text that is one of a few.
template <auto Section, auto Field>
ConfigKey NameKey(std::string_view name, std::string_view default_text, std::string_view valid,
                  std::string_view meaning, std::vector<std::string> choices) {
  return {.name = name,
          .type = "name",
          .default_text = default_text,
          .valid = valid,
          .meaning = meaning,
          .parse = [choices](const Values& v, const Machine&, Config* c) -> absl::Status {
            if (std::ranges::find(choices, v[0]) == choices.end())
              return absl::InvalidArgumentError("no such name");
            (c->*Section).*Field = v[0];
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return (c.*Section).*Field; }};
}

}  // namespace kvstore::daemon
