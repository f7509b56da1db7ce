// Encrypts and decrypts the slots of one namespace epoch: AES-256-GCM, bound to the block and to
// the place. FORMAT.md has the derivation, the bytes, and why no nonce is used twice.
//
//   slot = | page, encrypted | zero | SealedTrailer | slice checksums, encrypted | zero |
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/base/page_trailer.h"
#include "tiers/nvme/master_keys.h"

namespace kvstore::tiers {

inline constexpr uint64_t kSealedTrailerMagic = 0x31736541746b4b56;  // "VKktAes1"; on disk
inline constexpr uint32_t kSealedTrailerVersion = 1;

// In the place of the PageTrailer, whose fields are authenticated and not stored.
struct SealedTrailer {
  uint64_t magic;
  uint32_t version;
  uint32_t key_id;
  uint64_t generation;
  std::array<uint8_t, 12> nonce;
  std::array<uint8_t, 16> tag;
  std::array<uint8_t, 84> zero;
};
static_assert(sizeof(SealedTrailer) == sizeof(PageTrailer) && offsetof(SealedTrailer, tag) == 36,
              "on disk");

// A slot in one of its uses.
struct PagePlace {
  uint32_t slab = 0;
  uint32_t slot = 0;
  uint64_t generation = 0;
};

// Random, one for each epoch of a namespace. Without it the epoch's pages cannot be decrypted.
using EpochSecret = KeyBytes;

// Immutable, thread-safe. Keys are wiped at the end.
class PageCipher {
 public:
  PageCipher(std::shared_ptr<const MasterKeys> master_keys, const Fingerprint& fingerprint,
             uint64_t epoch, const EpochSecret& secret);
  ~PageCipher();
  PageCipher(const PageCipher&) = delete;
  PageCipher& operator=(const PageCipher&) = delete;

  uint32_t newest_key_id() const { return master_keys_->newest().id; }
  bool HasKey(uint32_t id) const { return master_keys_->Find(id) != nullptr; }

  // Makes in `sealed` (slot_bytes) what goes to disk in place of `slot`, which is only read:
  // clients may have it mapped. Checks the slice checksums against identity.page_checksum, not the
  // slices. `nonce`: for golden bytes; random by default. Errors: DataLoss, the source differs;
  // Unavailable, no random bytes.
  absl::Status Seal(std::byte* sealed, const std::byte* slot, const PageIdentity& identity,
                    const PagePlace& place, const std::array<uint8_t, 12>* nonce = nullptr) const;

  // Decrypts in place and checks everything: tag, padding, every slice. On OK the slot is as it was
  // before Seal(). Errors: DataLoss; the page is then garbage.
  absl::Status Open(std::byte* slot, const PageIdentity& expect, const PagePlace& place) const;

 private:
  KeyBytes PageKey(const KeyBytes& epoch_key, const PagePlace& place) const;

  const std::shared_ptr<const MasterKeys> master_keys_;
  std::vector<KeyBytes> epoch_keys_;  // one for each master key, in their order
};

// Tells keys of one ID apart without telling anything else about them.
std::array<uint8_t, 16> KeyCheck(const KeyBytes& master_key);

}  // namespace kvstore::tiers
