// Values as they lie on disk (FORMAT.md): little-endian, one behind the other.
#pragma once

#include <bit>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace kvstore::tiers {

static_assert(std::endian::native == std::endian::little, "on disk: little-endian");

template <typename T>
void Append(std::string& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Takes from the front of `in`, whose length was checked.
template <typename T>
T Take(std::string_view& in) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, in.data(), sizeof value);
  in.remove_prefix(sizeof value);
  return value;
}

}  // namespace kvstore::tiers
