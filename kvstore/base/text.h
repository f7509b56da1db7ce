// std::string_view meets Abseil here: Debian builds Abseil as C++14, so its string_view is another
// type than ours.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace kvstore {

inline absl::string_view AbslView(std::string_view s) {
  return absl::string_view(s.data(), s.size());
}
inline std::string_view StdView(absl::string_view s) {
  return std::string_view(s.data(), s.size());
}

}  // namespace kvstore
