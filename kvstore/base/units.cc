#include "kvstore/base/units.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <span>

#include "absl/strings/str_cat.h"

namespace kvstore {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};
constexpr Unit kByteUnits[] = {
    {"B", 1}, {"KiB", 1024.}, {"MiB", 1048576.}, {"GiB", 1073741824.}, {"TiB", 1099511627776.}};
constexpr Unit kTimeUnits[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}};

struct Quantity {
  double number;
  std::string_view unit;
};

std::optional<Quantity> Split(std::string_view text) {
  double number = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0) return std::nullopt;
  return Quantity{number, text.substr(end - text.data())};
}

std::optional<double> Scale(const Quantity& q, std::span<const Unit> units) {
  for (const Unit& unit : units) {
    if (unit.name == q.unit) return q.number * unit.factor;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text, uint64_t whole_bytes) {
  const std::optional<Quantity> q = Split(text);
  if (q && q->unit == "%" && whole_bytes > 0 && q->number <= 100) {
    return static_cast<uint64_t>(q->number / 100 * static_cast<double>(whole_bytes));
  }
  if (q) {
    const std::optional<double> bytes = Scale(*q, kByteUnits);
    if (bytes && *bytes < 9.2e18) return static_cast<uint64_t>(*bytes);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "size \"", std::string(text), "\" is not valid; write a number with B, KiB, MiB, GiB or TiB",
      whole_bytes > 0 ? ", or a percentage up to 100%" : "", ", such as 512MiB"));
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  if (const std::optional<Quantity> q = Split(text)) {
    const std::optional<double> seconds = Scale(*q, kTimeUnits);
    if (seconds && *seconds < 1e9) return absl::Seconds(*seconds);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("time \"", std::string(text),
                   "\" is not valid; write a number with us, ms, s, m or h, such as 200ms"));
}

std::string FormatBytes(uint64_t bytes) {
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kByteUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  const int decimals = unit == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return absl::StrCat(text, " ", std::string(kByteUnits[unit].name));
}

}  // namespace kvstore
