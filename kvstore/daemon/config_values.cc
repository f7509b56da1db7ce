#include "kvstore/daemon/config_values.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvstore::daemon {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

}  // namespace

absl::Status OutOfRange() { return absl::InvalidArgumentError("out of range"); }

absl::StatusOr<uint64_t> ParseInteger(std::string_view text, uint64_t low, uint64_t high) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return absl::InvalidArgumentError("not an integer");
  if (value < low || value > high) return OutOfRange();
  return value;
}

std::string PrintDuration(absl::Duration value) {
  if (value % absl::Seconds(1) == absl::ZeroDuration())
    return absl::StrCat(absl::ToInt64Seconds(value), "s");
  return absl::StrCat(absl::ToInt64Microseconds(value), "us");
}

std::string PrintBytes(uint64_t bytes) {
  if (bytes != 0 && bytes % kGiB == 0) return absl::StrCat(bytes / kGiB, "GiB");
  if (bytes != 0 && bytes % kMiB == 0) return absl::StrCat(bytes / kMiB, "MiB");
  return absl::StrCat(bytes, "B");
}

std::string PrintList(const std::vector<std::string>& values) {
  const bool is_plain = std::ranges::none_of(values, [&](const std::string& value) {
    return value.find(',') != std::string::npos || value.empty() || value.starts_with('[');
  });
  if (is_plain) return absl::StrJoin(values, ",");
  std::string out = "[";
  for (const std::string& value : values) {
    out += out.size() > 1 ? ", \"" : "\"";
    for (const char c : value) {
      if (c == '"' || c == '\\') out += '\\';
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        absl::StrAppend(&out, "\\u", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad4));
      } else {
        out += c;
      }
    }
    out += '"';
  }
  return out + "]";
}

}  // namespace kvstore::daemon
