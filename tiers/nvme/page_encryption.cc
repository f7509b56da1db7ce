#include "tiers/nvme/page_encryption.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/disk_bytes.h"

namespace kvstore::tiers {
namespace {

constexpr std::string_view kMagic = "VKnvSec1";  // on disk; FORMAT.md
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 8 + 4 * 4;
constexpr size_t kCheckBytes = 4 + 16;
constexpr size_t kSecretBytes = 16 + 8 + kKeyBytes;

}  // namespace

PageEncryption::Epoch::~Epoch() { OPENSSL_cleanse(secret.data(), secret.size()); }

absl::StatusOr<std::unique_ptr<PageEncryption>> PageEncryption::Create(
    std::vector<std::string> namespaces, std::shared_ptr<const MasterKeys> master_keys,
    std::string_view secrets) {
  std::unique_ptr<PageEncryption> encryption(new PageEncryption(std::move(master_keys)));
  for (std::string& name : namespaces) {
    encryption->covers_all_ |= name == "*";
    encryption->names_.insert(std::move(name));
  }
  if (!secrets.empty()) RETURN_IF_ERROR(encryption->Decode(secrets));
  RETURN_IF_ERROR(encryption->CheckKeys(*encryption->master_keys_));
  encryption->NoteKeys();
  return encryption;
}

absl::Status PageEncryption::ReplaceKeys(std::shared_ptr<const MasterKeys> master_keys) {
  RETURN_IF_ERROR(CheckKeys(*master_keys));
  for (const MasterKeys::Key& key : master_keys_->keys()) {
    if (master_keys->Find(key.id) == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("nvme: ", master_keys->name(), " lacks key ", key.id,
                       ", which is in use; to lose the pages under it, restart the daemon"));
    }
  }
  master_keys_ = std::move(master_keys);
  NoteKeys();
  for (auto& [id, epoch] : ciphers_) {
    epoch.cipher =
        std::make_shared<const PageCipher>(master_keys_, id.first, id.second, epoch.secret);
  }
  ++version_;
  return absl::OkStatus();
}

void PageEncryption::NoteKeys() {
  for (const MasterKeys::Key& key : master_keys_->keys()) key_checks_[key.id] = KeyCheck(key.bytes);
}

// A wrong key would make every page a miss, and nobody would know why.
absl::Status PageEncryption::CheckKeys(const MasterKeys& keys) const {
  std::vector<uint32_t> known;
  bool has_one = false;
  for (const auto& [id, check] : key_checks_) {
    known.push_back(id);
    const MasterKeys::Key* key = keys.Find(id);
    if (key == nullptr) continue;
    has_one = true;
    if (KeyCheck(key->bytes) != check) {
      return absl::FailedPreconditionError(
          absl::StrCat("nvme: key ", id, " in ", keys.name(), " is not the key ", id,
                       " that the directory was written with; give the right key file, "
                       "or empty the directory to lose its pages"));
    }
  }
  if (has_one || known.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "nvme: ", keys.name(), " has none of the keys (ID ", absl::StrJoin(known, ", "),
      ") that the directory was written with; give the right key file, or empty the directory to "
      "lose its pages"));
}

void PageEncryption::Name(const Fingerprint& fingerprint, std::string_view name) {
  if (names_.contains(name) || names_.contains(fingerprint.Hex())) covered_.insert(fingerprint);
}

bool PageEncryption::Covers(const Fingerprint& fingerprint) const {
  return covers_all_ || covered_.contains(fingerprint);
}

std::shared_ptr<const PageCipher> PageEncryption::Find(const Fingerprint& fingerprint,
                                                       uint64_t epoch) const {
  const auto it = ciphers_.find({fingerprint, epoch});
  return it == ciphers_.end() ? nullptr : it->second.cipher;
}

absl::StatusOr<std::shared_ptr<const PageCipher>> PageEncryption::FindOrMake(
    const Fingerprint& fingerprint, uint64_t epoch) {
  if (auto known = Find(fingerprint, epoch)) return known;
  const auto erased = erased_below_.find(fingerprint);
  if (erased != erased_below_.end() && epoch < erased->second) {
    return absl::AbortedError("nvme: the namespace was cleared");
  }
  EpochSecret secret;
  if (RAND_bytes(secret.data(), static_cast<int>(secret.size())) != 1) {
    return absl::UnavailableError("nvme: no random bytes for the secret of a namespace");
  }
  Add({fingerprint, epoch}, secret);
  OPENSSL_cleanse(secret.data(), secret.size());
  ++version_;
  return Find(fingerprint, epoch);
}

void PageEncryption::Add(const EpochId& id, const EpochSecret& secret) {
  Epoch& epoch = ciphers_[id];
  epoch.secret = secret;
  epoch.cipher = std::make_shared<const PageCipher>(master_keys_, id.first, id.second, secret);
}

bool PageEncryption::Erase(const Fingerprint& fingerprint, uint64_t below_epoch) {
  uint64_t& floor = erased_below_[fingerprint];
  floor = std::max(floor, below_epoch);
  const auto begin = ciphers_.lower_bound({fingerprint, 0});
  const auto end = ciphers_.lower_bound({fingerprint, below_epoch});
  if (begin == end) return false;
  ciphers_.erase(begin, end);
  ++version_;
  return true;
}

std::string PageEncryption::Encode() const {
  std::string out(kMagic);
  out.reserve(kHeaderBytes + key_checks_.size() * kCheckBytes + ciphers_.size() * kSecretBytes + 8);
  Append(out, kVersion);
  Append(out, static_cast<uint32_t>(key_checks_.size()));
  Append(out, static_cast<uint32_t>(ciphers_.size()));
  Append(out, uint32_t{0});
  for (const auto& [id, check] : key_checks_) {
    Append(out, id);
    Append(out, check);
  }
  for (const auto& [id, epoch] : ciphers_) {
    Append(out, id.first.bytes);
    Append(out, id.second);
    Append(out, epoch.secret);
  }
  Append(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  return out;
}

absl::Status PageEncryption::Decode(std::string_view bytes) {
  const auto damaged = [](const char* what) {
    return absl::DataLossError(absl::StrCat(
        "nvme: the file `secrets` of the directory: ", what,
        "; without it encrypted pages cannot be read: empty the directory to start anew"));
  };
  if (bytes.size() < kHeaderBytes + 8 || !bytes.starts_with(kMagic)) return damaged("not ours");
  uint64_t checksum;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 8, 8);
  std::string_view in = bytes.substr(kMagic.size(), bytes.size() - kMagic.size() - 8);
  if (Take<uint32_t>(in) != kVersion) return damaged("another version");
  if (checksum != XXH3_64bits(bytes.data(), bytes.size() - 8)) return damaged("checksum differs");
  const auto num_checks = Take<uint32_t>(in), num_secrets = Take<uint32_t>(in);
  if (Take<uint32_t>(in) != 0 ||
      in.size() != num_checks * kCheckBytes + num_secrets * kSecretBytes) {
    return damaged("impossible counts");
  }
  for (uint32_t i = 0; i < num_checks; ++i) {
    const auto id = Take<uint32_t>(in);
    if (key_checks_.contains(id)) return damaged("a key twice");
    key_checks_[id] = Take<std::array<uint8_t, 16>>(in);
  }
  for (uint32_t i = 0; i < num_secrets; ++i) {
    EpochId id;
    id.first.bytes = Take<std::array<uint8_t, Fingerprint::kBytes>>(in);
    id.second = Take<uint64_t>(in);
    if (ciphers_.contains(id)) return damaged("an epoch twice");
    EpochSecret secret = Take<EpochSecret>(in);
    Add(id, secret);
    OPENSSL_cleanse(secret.data(), secret.size());
  }
  return absl::OkStatus();
}

}  // namespace kvstore::tiers
