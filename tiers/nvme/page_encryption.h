// Which namespaces are encrypted at rest, and the secrets of their epochs.
//
// A page can be decrypted by whoever has the master key *and* its epoch's secret. The secret is
// made with the first page of an epoch and lies in DIR/secrets; when a namespace is cleared it is
// destroyed, and with it every page of the epoch, wherever copies of the disk may be.
//
// Confined to the core thread; Encode()'s bytes are written by the index thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"
#include "tiers/nvme/master_keys.h"
#include "tiers/nvme/page_cipher.h"

namespace kvstore::tiers {

class PageEncryption {
 public:
  // `namespaces`: names or fingerprints in hex, "*" for all. `secrets`: of the directory, as
  // Encode() made it; empty for a new one. Errors: FailedPrecondition, a key is not the one of its
  // ID that the directory was written with, or none of the directory's keys is there; DataLoss,
  // damaged secrets.
  static absl::StatusOr<std::unique_ptr<PageEncryption>> Create(
      std::vector<std::string> namespaces, std::shared_ptr<const MasterKeys> master_keys,
      std::string_view secrets);

  // From now on the newest of these encrypts. Errors: FailedPrecondition, a key that the running
  // daemon has is not among them, or one is not the key of its ID; then nothing has changed.
  absl::Status ReplaceKeys(std::shared_ptr<const MasterKeys> master_keys);
  // The namespace is called that, among other names.
  void Name(const Fingerprint& fingerprint, std::string_view name);
  bool Covers(const Fingerprint& fingerprint) const;

  // Null: there is no secret, so no page of the epoch can be read.
  std::shared_ptr<const PageCipher> Find(const Fingerprint& fingerprint, uint64_t epoch) const;
  // Makes a secret if there is none, which is a change. Errors: Aborted, the epoch was erased;
  // Unavailable, no random bytes.
  absl::StatusOr<std::shared_ptr<const PageCipher>> FindOrMake(const Fingerprint& fingerprint,
                                                               uint64_t epoch);
  // Forgets the secrets of all epochs below `epoch`; true if there were any.
  bool Erase(const Fingerprint& fingerprint, uint64_t below_epoch);
  bool HasKey(uint32_t id) const { return master_keys_->Find(id) != nullptr; }
  uint32_t newest_key_id() const { return master_keys_->newest().id; }

  // What is to be on disk now.
  std::string Encode() const;
  uint64_t version() const { return version_; }  // grows with every change
  size_t num_secrets() const { return ciphers_.size(); }

 private:
  using EpochId = std::pair<Fingerprint, uint64_t>;
  struct Epoch {
    EpochSecret secret{};
    std::shared_ptr<const PageCipher> cipher;
    ~Epoch();
  };

  explicit PageEncryption(std::shared_ptr<const MasterKeys> master_keys)
      : master_keys_(std::move(master_keys)) {}
  absl::Status Decode(std::string_view bytes);
  absl::Status CheckKeys(const MasterKeys& keys) const;
  void NoteKeys();
  void Add(const EpochId& id, const EpochSecret& secret);

  std::shared_ptr<const MasterKeys> master_keys_;
  bool covers_all_ = false;
  std::set<std::string, std::less<>> names_;
  std::set<Fingerprint> covered_;
  std::map<uint32_t, std::array<uint8_t, 16>> key_checks_;  // of all keys ever used here
  std::map<EpochId, Epoch> ciphers_;
  std::map<Fingerprint, uint64_t> erased_below_;  // late writes of a cleared epoch make no secret
  uint64_t version_ = 1;
};

}  // namespace kvstore::tiers
