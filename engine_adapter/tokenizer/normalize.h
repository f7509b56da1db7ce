// Unicode normalization form C of text that goes into a tokenizer.
#pragma once

#include <absl/status/statusor.h>

#include <string>
#include <string_view>

namespace kvstore::engine {

// Requires: valid UTF-8. Uses ICU (its C interface): composition tables are large, and errors in
// them would be silent. Errors: Internal, ICU's data is missing.
absl::StatusOr<std::string> NormalizeNfc(std::string_view text);

}  // namespace kvstore::engine
