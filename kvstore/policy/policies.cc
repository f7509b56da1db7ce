#include "kvstore/policy/policies.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace kvstore::policy {

absl::StatusOr<WriteMode> ParseWriteMode(std::string_view name) {
  if (name == "through") return WriteMode::kThrough;
  if (name == "back") return WriteMode::kBack;
  return absl::InvalidArgumentError(
      absl::StrCat("write policy \"", std::string(name), "\" is not valid; valid: through, back"));
}

std::string_view WriteModeName(WriteMode mode) {
  return mode == WriteMode::kThrough ? "through" : "back";
}

absl::Status PolicyOptions::Validate() const {
  if (!(low_watermark > 0 && low_watermark < high_watermark && high_watermark < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("watermarks ", low_watermark, " and ", high_watermark,
                     " are not valid; valid: 0 < low_watermark < high_watermark < 1"));
  }
  return absl::OkStatus();
}

}  // namespace kvstore::policy
