// The keys that pages at rest are encrypted under, as the key file gives them.
//
//   # ID and 32 bytes in hex; the highest ID encrypts, all of them decrypt
//   1 8f3c...
//   2 a07e...
//
// To rotate, add a line with a higher ID and send SIGHUP: what is written then is under it.
// Pages of a key that is taken out of the file are dropped at the next start.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace kvstore::tiers {

inline constexpr size_t kKeyBytes = 32;
using KeyBytes = std::array<uint8_t, kKeyBytes>;

// Immutable, thread-safe. The bytes are wiped at the end.
class MasterKeys {
 public:
  static constexpr size_t kKeysMax = 16;
  struct Key {
    uint32_t id = 0;
    KeyBytes bytes{};
  };

  // Errors: those of ReadSecretFile (kvstore/base/trusted_path.h); InvalidArgument, naming the
  // line.
  static absl::StatusOr<std::shared_ptr<const MasterKeys>> Read(const std::string& path);
  // `name` is for messages, which never show a key.
  static absl::StatusOr<std::shared_ptr<const MasterKeys>> Parse(std::string_view text,
                                                                 const std::string& name);
  ~MasterKeys();
  MasterKeys(const MasterKeys&) = delete;
  MasterKeys& operator=(const MasterKeys&) = delete;

  const std::vector<Key>& keys() const { return keys_; }  // by rising ID, at least one
  const Key& newest() const { return keys_.back(); }
  const Key* Find(uint32_t id) const;
  const std::string& name() const { return name_; }

 private:
  explicit MasterKeys(std::string name) : name_(std::move(name)) { keys_.reserve(kKeysMax); }
  absl::Status AddLine(std::string_view line);

  const std::string name_;
  std::vector<Key> keys_;  // never grows beyond what is reserved: no copies are left behind
};

}  // namespace kvstore::tiers
