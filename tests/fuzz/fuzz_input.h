// What every fuzz target needs: pieces of the input, and how a broken promise is told.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

// A promise of the code under test. libFuzzer keeps the input of a process that aborts.
#define REQUIRE(claim)                                                         \
  do {                                                                         \
    if (!(claim)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
      std::abort();                                                            \
    }                                                                          \
  } while (false)

// A finding of UBSan is a crash, too: libFuzzer keeps its input. Each target is one source file.
extern "C" const char* __ubsan_default_options() { return "halt_on_error=1:print_stacktrace=1"; }

namespace kvstore::fuzz {

// Takes from the front of the input; what is missing at its end is zero.
class Input {
 public:
  Input(const uint8_t* data, size_t bytes) : rest_(reinterpret_cast<const char*>(data), bytes) {}

  bool is_empty() const { return rest_.empty(); }

  template <typename T>
  T Take() {
    T value{};
    const std::string_view from = TakeBytes(sizeof value);
    if (!from.empty()) std::memcpy(&value, from.data(), from.size());
    return value;
  }
  std::string_view TakeBytes(size_t bytes) {
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  // A length (16 bits) and as many bytes.
  std::string_view TakePart() { return TakeBytes(Take<uint16_t>()); }
  // Up to the next zero byte, which is dropped.
  std::string_view TakeText() {
    const std::string_view text = TakeBytes(std::min(rest_.find('\0'), rest_.size()));
    TakeBytes(1);
    return text;
  }
  std::string_view TakeRest() { return TakeBytes(rest_.size()); }

 private:
  std::string_view rest_;
};

// A copy that ends where its memory ends, so that a read behind it is seen.
inline std::string Copy(std::string_view bytes) { return std::string(bytes); }

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace kvstore::fuzz
