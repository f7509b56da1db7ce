// Sizes and times as people write them: "512MiB", "40GiB", "25%", "200ms", "2s".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvstore {

// A number and one of B, KiB, MiB, GiB, TiB (binary), or a percentage of `whole_bytes` (0:
// percentages are refused). Errors: InvalidArgument naming the text and what is valid.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text, uint64_t whole_bytes = 0);
// A number and one of us, ms, s, m, h. Errors as above.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);
// Three significant digits: "0 B", "360 KiB", "1.50 GiB".
std::string FormatBytes(uint64_t bytes);

}  // namespace kvstore
