#include "tiers/nvme/master_keys.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <charconv>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/trusted_path.h"

namespace kvstore::tiers {
namespace {

constexpr size_t kFileBytesMax = 64 << 10;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool ParseHex(std::string_view text, KeyBytes& bytes) {
  if (text.size() != 2 * bytes.size()) return false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int high = HexDigit(text[2 * i]), low = HexDigit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MasterKeys>> MasterKeys::Read(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, ReadSecretFile(path, kFileBytesMax));
  auto keys = Parse(text, path);
  OPENSSL_cleanse(text.data(), text.size());
  return keys;
}

absl::StatusOr<std::shared_ptr<const MasterKeys>> MasterKeys::Parse(std::string_view text,
                                                                    const std::string& name) {
  std::shared_ptr<MasterKeys> keys(new MasterKeys(name));
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == '#') continue;
    if (absl::Status status = keys->AddLine(line); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ":", number, ": ", status.message(),
                                                     "; a line is: ID, a space, 64 hex digits"));
    }
  }
  if (keys->keys_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": no key in it; e.g. (echo -n '1 '; openssl rand -hex 32) > FILE"));
  }
  std::ranges::sort(keys->keys_, {}, &Key::id);
  return std::shared_ptr<const MasterKeys>(std::move(keys));
}

absl::Status MasterKeys::AddLine(std::string_view line) {
  Key key;
  const auto [id_end, error] = std::from_chars(line.data(), line.data() + line.size(), key.id);
  if (error != std::errc() || key.id == 0) {
    return absl::InvalidArgumentError("no ID from 1 to 4294967295");
  }
  const std::string_view rest = line.substr(static_cast<size_t>(id_end - line.data()));
  // Without one, digits of the key could be taken for the ID.
  if (!rest.starts_with(' ') && !rest.starts_with('\t'))
    return absl::InvalidArgumentError("no space behind the ID");
  const std::string_view hex = Trim(rest);
  if (!ParseHex(hex, key.bytes)) return absl::InvalidArgumentError("the key is not 64 hex digits");
  if (Find(key.id) != nullptr) return absl::InvalidArgumentError("its ID is there twice");
  if (keys_.size() == kKeysMax) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kKeysMax, " keys"));
  }
  keys_.push_back(key);
  OPENSSL_cleanse(key.bytes.data(), key.bytes.size());
  return absl::OkStatus();
}

MasterKeys::~MasterKeys() {
  for (Key& key : keys_) OPENSSL_cleanse(key.bytes.data(), key.bytes.size());
}

const MasterKeys::Key* MasterKeys::Find(uint32_t id) const {
  const auto it = std::ranges::find(keys_, id, &Key::id);
  return it == keys_.end() ? nullptr : &*it;
}

}  // namespace kvstore::tiers
