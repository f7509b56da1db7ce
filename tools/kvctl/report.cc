#include "tools/kvctl/report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvstore::kvctl {
namespace {

// Bytes of the UTF-8 sequence that starts at text[i]; 0 where there is none. Columns count bytes,
// which is right for ASCII only: good enough for names.
size_t Utf8Length(std::string_view text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xc2 ? 0
                        : lead < 0xe0 ? 2
                        : lead < 0xf0 ? 3
                        : lead < 0xf5 ? 4
                                      : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return 0;
  }
  // U+0080 to U+009F are control characters to a terminal.
  if (length == 2 && lead == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0) return 0;
  return length;
}

void Pad(std::string& line, std::string_view cell, size_t width, Align align) {
  const std::string space(width - std::min(width, cell.size()), ' ');
  if (align == Align::kRight) line += space;
  line.append(cell);
  if (align == Align::kLeft) line += space;
}

}  // namespace

void Table::Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

std::string Table::Render() const {
  std::vector<std::vector<std::string>> lines(1);
  for (const Column& column : columns_) lines[0].push_back(column.heading);
  lines.insert(lines.end(), rows_.begin(), rows_.end());
  std::vector<size_t> widths(columns_.size(), 0);
  for (const auto& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string out;
  for (const auto& cells : lines) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) line += "  ";
      Pad(line, cells[i], widths[i], columns_[i].align);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

std::string RenderPairs(const std::vector<std::pair<std::string, std::string>>& pairs) {
  size_t width = 0;
  for (const auto& [name, value] : pairs) width = std::max(width, name.size());
  std::string out;
  for (const auto& [name, value] : pairs) {
    Pad(out, name, width, Align::kLeft);
    absl::StrAppend(&out, "  ", value, "\n");
  }
  return out;
}

std::string Printable(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    const auto lead = static_cast<unsigned char>(text[i]);
    if (length == 0 || lead < 0x20 || lead == 0x7f) {
      out += '?';
      ++i;
      continue;
    }
    out.append(text.substr(i, length));
    i += length;
  }
  return out;
}

std::string FormatCount(uint64_t count) {
  std::string out = absl::StrCat(count);
  for (size_t i = out.size(); i > 3; i -= 3) out.insert(i - 3, ",");
  return out;
}

std::string FormatSeconds(double seconds) {
  if (seconds < 60) return absl::StrFormat("%.1fs", seconds);
  const auto whole = static_cast<uint64_t>(seconds);
  if (whole < 3600) return absl::StrFormat("%dm %ds", whole / 60, whole % 60);
  if (whole < 86400) return absl::StrFormat("%dh %dm", whole / 3600, whole % 3600 / 60);
  return absl::StrFormat("%dd %dh", whole / 86400, whole % 86400 / 3600);
}

void PrintText(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void PrintJson(const nlohmann::json& value) {
  PrintText(value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

ExitCode PrintError(const absl::Status& status, bool json) {
  const std::string message(status.message().data(), status.message().size());
  const std::string code = absl::StatusCodeToString(status.code());
  if (json) {
    PrintJson({{"error", {{"code", code}, {"message", message}}}});
  } else {
    const std::string line = absl::StrCat("kvctl: ", Printable(message), " (", code, ")\n");
    std::fwrite(line.data(), 1, line.size(), stderr);
  }
  return status.code() == absl::StatusCode::kInvalidArgument ? ExitCode::kUsage : ExitCode::kFailed;
}

}  // namespace kvstore::kvctl
