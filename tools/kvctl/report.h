// What a command prints: one JSON object with --json, aligned text without.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "tools/kvctl/exit_code.h"

namespace kvstore::kvctl {

enum class Align { kLeft, kRight };

// Rows under a heading, columns as wide as their widest cell, two spaces apart. Cells must be
// Printable().
class Table {
 public:
  struct Column {
    std::string heading;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  // Requires: as many cells as columns.
  void Add(std::vector<std::string> cells);
  std::string Render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "name  value" lines, values aligned.
std::string RenderPairs(const std::vector<std::pair<std::string, std::string>>& pairs);

// Text from elsewhere as it may reach a terminal: control characters and bytes that are not UTF-8
// become '?'.
std::string Printable(std::string_view text);
std::string FormatCount(uint64_t count);    // "1,024"
std::string FormatSeconds(double seconds);  // "0.8s", "3m 12s", "2d 4h"

void PrintText(std::string_view text);
// Bytes that are not UTF-8 are replaced, never an exception.
void PrintJson(const nlohmann::json& value);

// Prints the error in the form that was asked for (JSON to stdout, text to stderr) and gives its
// exit code: INVALID_ARGUMENT is kUsage, all others kFailed.
ExitCode PrintError(const absl::Status& status, bool json);

}  // namespace kvstore::kvctl
