// Reads JSON from untrusted files: a bound on the size, no exceptions, and errors that name the
// file and the key.
//
// It pulls in nlohmann/json: include it from sources only, never from a header that others use.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace kvstore::engine {

// Errors: NotFound, no such file; InvalidArgument, not a regular file or larger than `bytes_max`.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t bytes_max);

// The text as a JSON object in which no object names a key twice.
// Errors: InvalidArgument, anything else.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view file_name);

// The fields of one object of one file. An absent key and an explicit null are the same.
class JsonFields {
 public:
  // `object` outlives this; `prefix` names it in messages ("" or "rope_scaling.").
  JsonFields(const nlohmann::json& object, std::string_view file_name, std::string_view prefix)
      : object_(object), file_name_(file_name), prefix_(prefix) {}

  // Null if absent.
  const nlohmann::json* Find(const char* key) const;

  // Errors: InvalidArgument, absent, of another type, or outside [min, max].
  absl::StatusOr<int64_t> Integer(const char* key, int64_t min, int64_t max) const;
  absl::StatusOr<double> Number(const char* key, double min, double max) const;

  // As above, but absent means `if_absent`.
  absl::StatusOr<int64_t> IntegerOr(const char* key, int64_t if_absent, int64_t min,
                                    int64_t max) const;
  absl::StatusOr<bool> BoolOr(const char* key, bool if_absent) const;
  absl::StatusOr<std::string> StringOr(const char* key, std::string_view if_absent) const;

  // InvalidArgument: "FILE: KEY is VALUE; PROBLEM".
  absl::Status Bad(const char* key, std::string_view problem) const;

 private:
  const nlohmann::json& object_;
  std::string file_name_;
  std::string prefix_;
};

}  // namespace kvstore::engine
