#include "engine_adapter/json/json_file.h"

#include <absl/strings/str_cat.h>

#include <cmath>
#include <fstream>
#include <set>
#include <vector>

#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

// Deeper nesting than any model file has; nlohmann's parser itself is iterative.
constexpr int kDepthMax = 64;

// What an error message shows of a value: enough to find it, not a flood.
std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t bytes_max) {
  std::error_code error;
  const auto file_status = std::filesystem::status(path, error);
  if (file_status.type() == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(path.string(), ": no such file"));
  }
  if (!std::filesystem::is_regular_file(file_status)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": not a regular file"));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char buffer[1 << 16];
  while (file.read(buffer, sizeof(buffer)) || file.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (text.size() > bytes_max) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": larger than the ", bytes_max, " bytes allowed"));
    }
  }
  if (!file.eof()) return absl::UnavailableError(absl::StrCat(path.string(), ": cannot be read"));
  return text;
}

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view file_name) {
  std::vector<std::set<std::string, std::less<>>> keys_of_open_objects;
  std::string problem;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kDepthMax && problem.empty()) problem = "is nested too deeply";
    if (event == json::parse_event_t::object_start) keys_of_open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) keys_of_open_objects.pop_back();
    if (event == json::parse_event_t::key && problem.empty()) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_of_open_objects.back().insert(key).second) {
        problem = absl::StrCat("names the key ", Shown(parsed), " twice");
      }
    }
    return true;
  };
  json parsed = json::parse(text, check, /*allow_exceptions=*/false);
  if (problem.empty() && parsed.is_discarded()) problem = "is not valid JSON";
  if (problem.empty() && !parsed.is_object()) problem = "is not a JSON object";
  if (!problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(AbslView(file_name), ": ", problem));
  }
  return parsed;
}

const json* JsonFields::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

absl::Status JsonFields::Bad(const char* key, std::string_view problem) const {
  const json* value = Find(key);
  return absl::InvalidArgumentError(absl::StrCat(file_name_, ": ", prefix_, key, " is ",
                                                 value == nullptr ? "absent" : Shown(*value), "; ",
                                                 AbslView(problem)));
}

absl::StatusOr<int64_t> JsonFields::Integer(const char* key, int64_t min, int64_t max) const {
  const json* value = Find(key);
  const bool fits = value != nullptr && value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX);
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return Bad(key, absl::StrCat("an integer from ", min, " to ", max, " is valid"));
  }
  return value->get<int64_t>();
}

absl::StatusOr<double> JsonFields::Number(const char* key, double min, double max) const {
  const json* value = Find(key);
  if (value == nullptr || !value->is_number() || !(value->get<double>() >= min) ||
      !(value->get<double>() <= max)) {
    return Bad(key, absl::StrCat("a number from ", min, " to ", max, " is valid"));
  }
  return value->get<double>();
}

absl::StatusOr<int64_t> JsonFields::IntegerOr(const char* key, int64_t if_absent, int64_t min,
                                              int64_t max) const {
  if (Find(key) == nullptr) return if_absent;
  return Integer(key, min, max);
}

absl::StatusOr<bool> JsonFields::BoolOr(const char* key, bool if_absent) const {
  const json* value = Find(key);
  if (value == nullptr) return if_absent;
  if (!value->is_boolean()) return Bad(key, "true or false is valid");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::StringOr(const char* key,
                                                 std::string_view if_absent) const {
  const json* value = Find(key);
  if (value == nullptr) return std::string(if_absent);
  if (!value->is_string()) return Bad(key, "a string is valid");
  return value->get<std::string>();
}

}  // namespace kvstore::engine
