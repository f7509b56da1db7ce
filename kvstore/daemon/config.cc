#include "kvstore/daemon/config.h"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/base/toml.h"
#include "kvstore/daemon/config_keys.h"

namespace kvstore::daemon {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;

// A value as it was written, before a key's parser sees it.
struct Written {
  std::vector<std::string> elements;
  bool is_list = false;
  std::string text;  // as shown in messages
  std::string source;
};
using WrittenByKey = std::map<std::string, Written, std::less<>>;

// "server.listen, server.sessions_max" for an unknown key of a known section, the sections
// otherwise.
std::string ValidKeysNear(std::string_view key) {
  const std::string_view section = key.substr(0, key.find('.'));
  std::vector<std::string> in_section, sections;
  for (const ConfigKey& known : ConfigKeys()) {
    const std::string_view known_section = known.name.substr(0, known.name.find('.'));
    if (known_section == section) in_section.emplace_back(known.name);
    if (sections.empty() || sections.back() != known_section) sections.emplace_back(known_section);
  }
  if (!in_section.empty()) return absl::StrJoin(in_section, ", ");
  return absl::StrCat("sections ", absl::StrJoin(sections, ", "));
}

absl::Status Bad(std::string_view key, const Written& value, std::string_view why,
                 std::string_view valid) {
  return absl::InvalidArgumentError(absl::StrCat(AbslView(value.source), ": ", AbslView(key), " = ",
                                                 value.text, ": ", AbslView(why),
                                                 "; valid: ", AbslView(valid)));
}

absl::StatusOr<std::string> ScalarText(const toml::node& node) {
  if (auto* text = node.as_string()) return text->get();
  if (auto* number = node.as_integer()) return absl::StrCat(number->get());
  if (auto* flag = node.as_boolean()) return std::string(flag->get() ? "true" : "false");
  return absl::InvalidArgumentError("neither a string nor an integer");
}

absl::Status AddLeaf(const std::string& key, const toml::node& node, const std::string& source,
                     WrittenByKey* out) {
  Written written{.elements = {}, .is_list = node.is_array(), .text = {}, .source = source};
  if (const toml::array* array = node.as_array()) {
    for (const toml::node& element : *array) {
      absl::StatusOr<std::string> text = ScalarText(element);
      if (!text.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(source, ": ", key, ": an element is ", text.status().message()));
      }
      written.elements.push_back(*std::move(text));
    }
    written.text = absl::StrCat("[", absl::StrJoin(written.elements, ", "), "]");
  } else {
    absl::StatusOr<std::string> text = ScalarText(node);
    if (!text.ok())
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": ", key, ": ", text.status().message()));
    written.text = absl::StrCat("'", *text, "'");
    written.elements.push_back(*std::move(text));
  }
  // policy.write: one name for all tiers, or a table by tier.
  if (key == "policy.write") {
    (*out)["policy.write.dram"] = written;
    (*out)["policy.write.nvme"] = std::move(written);
    return absl::OkStatus();
  }
  (*out)[key] = std::move(written);
  return absl::OkStatus();
}

absl::Status Flatten(const toml::table& table, const std::string& prefix, const std::string& source,
                     WrittenByKey* out) {
  for (const auto& [name, node] : table) {
    const std::string key =
        prefix.empty() ? std::string(name.str()) : absl::StrCat(prefix, ".", AbslView(name.str()));
    // "tier.dram" in quotes would be a second way to write a key, and could contradict the first.
    if (name.str().find('.') != std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": \"", AbslView(name.str()), "\": a dot in a quoted name"));
    }
    if (const toml::table* inner = node.as_table()) {
      RETURN_IF_ERROR(Flatten(*inner, key, source, out));
    } else {
      RETURN_IF_ERROR(AddLeaf(key, node, source, out));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadToml(std::string_view toml_text, std::string_view file_name, WrittenByKey* out) {
  toml::parse_result parsed = toml::parse(toml_text, file_name);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return absl::InvalidArgumentError(
        absl::StrCat(AbslView(file_name), ":", error.source().begin.line, ":",
                     error.source().begin.column, ": ", AbslView(error.description())));
  }
  return Flatten(parsed.table(), "", absl::StrCat("file ", AbslView(file_name)), out);
}

// A list is `a,b` or a TOML array; everything else is taken as it is.
absl::Status ReadSet(const std::string& set, WrittenByKey* out) {
  const size_t equals = set.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--set ", set, ": not section.key=value"));
  }
  const std::string key = set.substr(0, equals);
  const std::string text = set.substr(equals + 1);
  const ConfigKey* known = FindConfigKey(key);
  // Of an unknown key nobody knows whether it is a list: it is refused as what it looks like.
  if (text.starts_with("[") && (known == nullptr || known->is_list)) {
    toml::parse_result parsed = toml::parse(absl::StrCat("x = ", text));
    if (!parsed) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--set ", set, ": not a TOML array: ", AbslView(parsed.error().description())));
    }
    return AddLeaf(key, *parsed.table().get("x"), "--set", out);
  }
  if (known != nullptr && known->is_list) {
    Written written{
        .elements = {}, .is_list = true, .text = absl::StrCat("'", text, "'"), .source = "--set"};
    if (!text.empty()) written.elements = absl::StrSplit(text, ',');
    (*out)[key] = std::move(written);
    return absl::OkStatus();
  }
  const toml::value<std::string> value(text);
  return AddLeaf(key, value, "--set", out);
}

absl::StatusOr<LoadedConfig> Apply(const WrittenByKey& written, const Machine& machine) {
  LoadedConfig loaded;
  ApplyMachineDefaults(machine, &loaded.config);
  for (const auto& [key, value] : written) {
    const ConfigKey* known = FindConfigKey(key);
    if (known == nullptr) return Bad(key, value, "unknown key", ValidKeysNear(key));
    if (known->is_list != value.is_list) {
      return Bad(key, value, known->is_list ? "not a list" : "a list where one value is wanted",
                 known->valid);
    }
    absl::Status parsed = known->parse(value.elements, machine, &loaded.config);
    if (!parsed.ok()) return Bad(key, value, StdView(parsed.message()), known->valid);
  }
  RETURN_IF_ERROR(CheckConfig(loaded.config, machine));
  for (const ConfigKey& key : ConfigKeys()) {
    auto it = written.find(key.name);
    loaded.values.push_back({.key = std::string(key.name),
                             .value = key.print(loaded.config),
                             .source = it == written.end() ? "default" : it->second.source});
  }
  return loaded;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the configuration file ", path));
  std::string text(kFileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad() || (in.fail() && !in.eof()))
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path, "; is it a file?"));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kFileBytesMax)
    return absl::InvalidArgumentError(absl::StrCat(path, " is larger than 1 MiB"));
  return text;
}

}  // namespace

absl::StatusOr<LoadedConfig> LoadConfigText(std::string_view toml_text, std::string_view file_name,
                                            const std::vector<std::string>& sets,
                                            const Machine& machine) {
  WrittenByKey written;
  RETURN_IF_ERROR(ReadToml(toml_text, file_name, &written));
  for (const std::string& set : sets) RETURN_IF_ERROR(ReadSet(set, &written));
  return Apply(written, machine);
}

absl::StatusOr<LoadedConfig> LoadConfig(const std::optional<std::string>& file,
                                        const std::vector<std::string>& sets,
                                        const Machine& machine) {
  if (!file.has_value()) return LoadConfigText("", "", sets, machine);
  ASSIGN_OR_RETURN(std::string text, ReadFile(*file));
  return LoadConfigText(text, *file, sets, machine);
}

ConfigChange CompareConfigs(const LoadedConfig& before, const LoadedConfig& after) {
  ConfigChange change;
  for (size_t i = 0; i < before.values.size() && i < after.values.size(); ++i) {
    if (before.values[i].value == after.values[i].value) continue;
    const ConfigKey* key = FindConfigKey(after.values[i].key);
    (key != nullptr && key->is_live ? change.live : change.needs_restart)
        .push_back(after.values[i].key);
  }
  return change;
}

std::string DescribeKeys() {
  std::string out;
  for (const ConfigKey& key : ConfigKeys()) {
    absl::StrAppend(&out, "  ", AbslView(key.name), "  (", AbslView(key.type), ", default ",
                    AbslView(key.default_text), ")\n      ", AbslView(key.meaning),
                    ". Valid: ", AbslView(key.valid), "\n");
  }
  return out;
}

}  // namespace kvstore::daemon
