// Values of the configuration as text: what is printed here can be given back.
//
// Stateless.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvstore::daemon {

absl::Status OutOfRange();
// Errors: InvalidArgument, not an integer, or not in [low, high].
absl::StatusOr<uint64_t> ParseInteger(std::string_view text, uint64_t low, uint64_t high);

std::string PrintDuration(absl::Duration value);
std::string PrintBytes(uint64_t bytes);  // exactly
// With commas, or as TOML where that would be read as something else.
std::string PrintList(const std::vector<std::string>& values);

}  // namespace kvstore::daemon
