// The operator's key file, and the file `secrets` of an encrypted directory.
//
//   input: which u8; key file: its text; secrets: how u8 (1: with a right checksum), bytes
//
// Promises: the keys of an accepted file are what its lines say, in the canonical form too; no
// message shows a key; accepted secrets are written back as they were, byte for byte.
#include <xxhash.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/fuzz/fuzz_input.h"
#include "tiers/nvme/master_keys.h"
#include "tiers/nvme/page_encryption.h"

namespace kvstore {
namespace {

std::string Hex(const tiers::KeyBytes& key) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(key.data()), key.size()));
}

void OnKeyFile(const std::string& text) {
  const auto keys = tiers::MasterKeys::Parse(text, "keys");
  if (!keys.ok()) {
    REQUIRE(absl::IsInvalidArgument(keys.status()) && keys.status().message().size() < 200);
    return;
  }
  REQUIRE(!(*keys)->keys().empty() && (*keys)->keys().size() <= tiers::MasterKeys::kKeysMax);
  std::string canonical;
  uint32_t last = 0;
  for (const tiers::MasterKeys::Key& key : (*keys)->keys()) {
    REQUIRE(key.id > last && (*keys)->Find(key.id) == &key);
    last = key.id;
    absl::StrAppend(&canonical, key.id, " ", Hex(key.bytes), "\n");
  }
  REQUIRE((*keys)->newest().id == last);
  const auto again = tiers::MasterKeys::Parse(canonical, "keys");
  REQUIRE(again.ok() && (*again)->keys().size() == (*keys)->keys().size());
  for (const tiers::MasterKeys::Key& key : (*keys)->keys()) {
    REQUIRE((*again)->Find(key.id)->bytes == key.bytes);
    // An ID ends where a blank begins.
    REQUIRE(text.find(absl::StrCat(key.id, " ")) != std::string::npos ||
            text.find(absl::StrCat(key.id, "\t")) != std::string::npos);
  }
}

void OnSecrets(std::string bytes, bool is_checksum_right) {
  static const auto* const keys = new std::shared_ptr<const tiers::MasterKeys>(
      *tiers::MasterKeys::Parse("1 " + std::string(64, '1'), "keys"));
  if (is_checksum_right && bytes.size() >= 8) {
    const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size() - 8);
    std::memcpy(bytes.data() + bytes.size() - 8, &checksum, sizeof checksum);
  }
  const auto encryption = tiers::PageEncryption::Create({"*"}, *keys, bytes);
  if (!encryption.ok()) {
    REQUIRE(absl::IsDataLoss(encryption.status()) ||
            absl::IsFailedPrecondition(encryption.status()));
    return;
  }
  REQUIRE(bytes.size() / 56 >= (*encryption)->num_secrets());
  const std::string encoded = (*encryption)->Encode();
  const auto again = tiers::PageEncryption::Create({"*"}, *keys, encoded);
  REQUIRE(again.ok() && (*again)->Encode() == encoded);
  // Without the check of a key that is new here, it is what was read.
  if (encoded.size() == bytes.size()) REQUIRE(encoded == bytes);
  REQUIRE(bytes.empty() || encoded.size() == bytes.size() || encoded.size() == bytes.size() + 20);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  if ((input.Take<uint8_t>() & 1) == 0) {
    OnKeyFile(fuzz::Copy(input.TakeRest()));
  } else {
    const bool is_checksum_right = (input.Take<uint8_t>() & 1) != 0;
    OnSecrets(fuzz::Copy(input.TakeRest()), is_checksum_right);
  }
  return 0;
}
