// How pages of encrypted namespaces pass through the NVMe tier.
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/nvme_tier.h"

namespace kvstore::tiers {

using transfer::FileOperation;

void NvmeTier::NameNamespace(const Fingerprint& fingerprint, std::string_view name) {
  if (encryption_ != nullptr) encryption_->Name(fingerprint, name);
}

absl::StatusOr<std::shared_ptr<const PageCipher>> NvmeTier::CipherToWrite(
    const PageIdentity& identity) {
  if (encryption_ == nullptr || !encryption_->Covers(identity.fingerprint)) return nullptr;
  ASSIGN_OR_RETURN(auto cipher, encryption_->FindOrMake(identity.fingerprint, identity.epoch));
  // Also when the last save failed: the disk may be better now.
  if (queued_secrets_ < encryption_->version()) SaveSecrets([](absl::Status) {});
  return cipher;
}

absl::StatusOr<std::shared_ptr<const PageCipher>> NvmeTier::CipherToRead(
    const PageIdentity& expect) const {
  if (encryption_ == nullptr || !encryption_->Covers(expect.fingerprint)) return nullptr;
  auto cipher = encryption_->Find(expect.fingerprint, expect.epoch);
  if (cipher == nullptr) {
    return absl::DataLossError(absl::StrCat("block ", expect.hash.Hex().substr(0, 16),
                                            ": the keys of its namespace epoch are destroyed"));
  }
  return cipher;
}

FileOperation NvmeTier::EncryptedWrite(std::shared_ptr<const PageCipher> cipher, MutableRegion src,
                                       const PageIdentity& identity, const PagePlace& place) {
  FileOperation operation{.buffer = src};
  // On the progress thread, just before the device gets it: memory is needed only from then on, and
  // held until the operation has ended.
  auto memory = std::make_shared<SlotBufferLease>(slot_buffers_);
  operation.prepare = [memory, cipher = std::move(cipher), src, identity,
                       place](FileOperation& started) -> absl::Status {
    std::byte* sealed = memory->Take(src.bytes);
    if (sealed == nullptr) return absl::ResourceExhaustedError("no memory to encrypt in");
    started.buffer.data = sealed;
    return cipher->Seal(sealed, src.data, identity, place);
  };
  return operation;
}

void NvmeTier::SaveSecrets(Done done) {
  queued_secrets_ = encryption_->version();
  index_watch_.Began(clock_.Now());
  ArmWatch();
  index_->Run([this, version = queued_secrets_, bytes = encryption_->Encode(),
               saved = saved_secrets_, done = std::move(done)](absl::Status) mutable {
    absl::Status status = devices_.front().directory->SaveSecrets(bytes);
    if (status.ok()) saved->store(version);
    index_watch_.Ended(clock_.Now(), true);
    completions_->Post([this, status = std::move(status), done = std::move(done)]() mutable {
      if (!status.ok()) {
        queued_secrets_ = saved_secrets_->load();
        EnterReadOnly(std::string(status.message()));
      }
      done(std::move(status));
    });
  });
}

// What is written from now on waits for the secrets that know the new keys.
absl::Status NvmeTier::ReplaceKeys(std::shared_ptr<const MasterKeys> master_keys) {
  if (encryption_ == nullptr) return absl::FailedPreconditionError("nvme: nothing is encrypted");
  return encryption_->ReplaceKeys(std::move(master_keys));
}

void NvmeTier::EraseEpochs(const Fingerprint& fingerprint, uint64_t epoch, Done done) {
  if (is_stopped_) return Fail(std::move(done), absl::UnavailableError("nvme: stopped"));
  if (encryption_ == nullptr || !encryption_->Erase(fingerprint, epoch)) {
    return Fail(std::move(done), absl::OkStatus());
  }
  SaveSecrets(std::move(done));
}

// An attacker who can write the disk must not choose whether a page is taken for an encrypted one:
// the configuration does.
bool NvmeTier::MayClaim(const Record& record) const {
  const PageIdentity& identity = record.identity;
  const bool must_be_encrypted =
      encryption_ != nullptr && encryption_->Covers(identity.fingerprint);
  if (!must_be_encrypted) return record.key_id == 0;
  return record.key_id != 0 && encryption_->HasKey(record.key_id) &&
         encryption_->Find(identity.fingerprint, identity.epoch) != nullptr;
}

}  // namespace kvstore::tiers
