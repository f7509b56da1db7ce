#include "tiers/nvme/page_cipher.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {
namespace {

// Labels of the derivations; on disk, as it were.
constexpr std::string_view kEpochLabel = "kvstore nvme epoch 1";
constexpr std::string_view kPageLabel = "kvstore nvme page 1";
constexpr std::string_view kCheckLabel = "kvstore nvme key check 1";

// What the tag covers besides the encrypted bytes. Little-endian, no padding.
struct BoundData {
  uint64_t magic;
  uint32_t version;
  uint32_t key_id;
  uint64_t generation;
  uint32_t slab;
  uint32_t slot;
  uint32_t num_slices;
  uint32_t slice_bytes;
  uint32_t block_index;
  uint32_t zero;
  uint64_t epoch;
  uint64_t page_checksum;
  Fingerprint fingerprint;
  BlockHash hash;
  BlockHash parent;
};
static_assert(sizeof(BoundData) == 8 + 8 + 8 + 8 + 8 + 8 + 16 + 16 + 64);

// For calls that fail only when OpenSSL is broken or out of memory.
void Require(bool is_ok) {
  if (is_ok) return;
  std::fprintf(stderr, "page cipher: OpenSSL failed\n");
  std::abort();
}

KeyBytes HmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> data) {
  KeyBytes out;
  unsigned out_bytes = 0;
  Require(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(), data.size(),
               out.data(), &out_bytes) != nullptr &&
          out_bytes == out.size());
  return out;
}

template <typename T>
void Append(std::vector<uint8_t>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

// HKDF-SHA256 (RFC 5869) for 32 bytes, which are one block of its expansion.
KeyBytes Hkdf(const KeyBytes& key, const KeyBytes& salt, std::vector<uint8_t> purpose) {
  KeyBytes extracted = HmacSha256(salt, key);
  purpose.push_back(1);
  const KeyBytes expanded = HmacSha256(extracted, purpose);
  OPENSSL_cleanse(extracted.data(), extracted.size());
  return expanded;
}

BoundData Bind(const PageIdentity& identity, const PagePlace& place, uint32_t key_id) {
  BoundData bound{};
  bound.magic = kSealedTrailerMagic;
  bound.version = kSealedTrailerVersion;
  bound.key_id = key_id;
  bound.generation = place.generation;
  bound.slab = place.slab;
  bound.slot = place.slot;
  bound.num_slices = identity.shape.num_slices;
  bound.slice_bytes = identity.shape.slice_bytes;
  bound.block_index = identity.block_index;
  bound.epoch = identity.epoch;
  bound.page_checksum = identity.page_checksum;
  bound.fingerprint = identity.fingerprint;
  bound.hash = identity.hash;
  bound.parent = identity.parent;
  return bound;
}

// One message. A context a thread is kept: making one costs as much as a small page.
class Gcm {
 public:
  enum class Direction : int { kDecrypt = 0, kEncrypt = 1 };
  Gcm(Direction direction, KeyBytes key, const std::array<uint8_t, 12>& nonce,
      const BoundData& bound) {
    static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
    thread_local const std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context(
        EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
    context_ = context.get();
    Require(cipher != nullptr && context_ != nullptr);
    Require(EVP_CipherInit_ex(context_, cipher, nullptr, key.data(), nonce.data(),
                              static_cast<int>(direction)) == 1);
    OPENSSL_cleanse(key.data(), key.size());
    int bytes = 0;
    Require(EVP_CipherUpdate(context_, nullptr, &bytes, reinterpret_cast<const uint8_t*>(&bound),
                             sizeof bound) == 1);
  }
  // No expanded key stays in the thread's memory.
  ~Gcm() { EVP_CIPHER_CTX_reset(context_); }
  Gcm(const Gcm&) = delete;
  Gcm& operator=(const Gcm&) = delete;

  // `to` and `from` are the same or do not overlap. Slots are at most 256 MiB: fits an int.
  void Update(std::byte* to, const std::byte* from, size_t num_bytes) {
    int moved = 0;
    Require(EVP_CipherUpdate(context_, reinterpret_cast<uint8_t*>(to), &moved,
                             reinterpret_cast<const uint8_t*>(from),
                             static_cast<int>(num_bytes)) == 1);
  }
  std::array<uint8_t, 16> FinishAndTakeTag() {
    std::array<uint8_t, 16> tag{};
    Require(Finish());
    Require(EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_GET_TAG, sizeof tag, tag.data()) == 1);
    return tag;
  }
  bool FinishAndCheckTag(std::array<uint8_t, 16> tag) {
    Require(EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_SET_TAG, sizeof tag, tag.data()) == 1);
    return Finish();
  }

 private:
  bool Finish() {
    uint8_t nothing[16];
    int bytes = 0;
    return EVP_CipherFinal_ex(context_, nothing, &bytes) == 1;
  }
  EVP_CIPHER_CTX* context_;
};

bool IsZero(const std::byte* begin, const std::byte* end) {
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

std::array<uint8_t, 16> KeyCheck(const KeyBytes& master_key) {
  const std::vector<uint8_t> label(kCheckLabel.begin(), kCheckLabel.end());
  const KeyBytes whole = HmacSha256(master_key, label);
  std::array<uint8_t, 16> check;
  std::copy_n(whole.begin(), check.size(), check.begin());
  return check;
}

PageCipher::PageCipher(std::shared_ptr<const MasterKeys> master_keys,
                       const Fingerprint& fingerprint, uint64_t epoch, const EpochSecret& secret)
    : master_keys_(std::move(master_keys)) {
  std::vector<uint8_t> purpose(kEpochLabel.begin(), kEpochLabel.end());
  Append(purpose, fingerprint.bytes);
  Append(purpose, epoch);
  epoch_keys_.reserve(master_keys_->keys().size());
  for (const MasterKeys::Key& key : master_keys_->keys()) {
    epoch_keys_.push_back(Hkdf(key.bytes, secret, purpose));
  }
}

PageCipher::~PageCipher() {
  for (KeyBytes& key : epoch_keys_) OPENSSL_cleanse(key.data(), key.size());
}

KeyBytes PageCipher::PageKey(const KeyBytes& epoch_key, const PagePlace& place) const {
  std::vector<uint8_t> purpose(kPageLabel.begin(), kPageLabel.end());
  Append(purpose, place.generation);
  Append(purpose, place.slab);
  Append(purpose, place.slot);
  return HmacSha256(epoch_key, purpose);
}

absl::Status PageCipher::Seal(std::byte* sealed, const std::byte* slot,
                              const PageIdentity& identity, const PagePlace& place,
                              const std::array<uint8_t, 12>* nonce) const {
  const PageShape& shape = identity.shape;
  transfer::SliceTable table;  // our copy: the one in the slot may change while we work
  RETURN_IF_ERROR(table.Load(slot, identity));
  SealedTrailer trailer{};
  trailer.magic = kSealedTrailerMagic;
  trailer.version = kSealedTrailerVersion;
  trailer.key_id = newest_key_id();
  trailer.generation = place.generation;
  if (nonce != nullptr) {
    trailer.nonce = *nonce;
  } else if (RAND_bytes(trailer.nonce.data(), static_cast<int>(trailer.nonce.size())) != 1) {
    return absl::UnavailableError("no random bytes to encrypt a page with");
  }
  const uint64_t table_bytes = uint64_t{8} * shape.num_slices;
  std::byte* const sealed_table = sealed + transfer::SliceChecksumsOffset(shape);
  Gcm gcm(Gcm::Direction::kEncrypt, PageKey(epoch_keys_.back(), place), trailer.nonce,
          Bind(identity, place, trailer.key_id));
  gcm.Update(sealed, slot, shape.page_bytes());
  gcm.Update(sealed_table, reinterpret_cast<const std::byte*>(table.checksums().data()),
             table_bytes);
  trailer.tag = gcm.FinishAndTakeTag();
  std::memset(sealed + shape.page_bytes(), 0, TrailerOffset(shape) - shape.page_bytes());
  std::memcpy(sealed + TrailerOffset(shape), &trailer, sizeof trailer);
  std::byte* const table_end = sealed_table + table_bytes;
  std::memset(table_end, 0, static_cast<size_t>(sealed + shape.slot_bytes() - table_end));
  return absl::OkStatus();
}

absl::Status PageCipher::Open(std::byte* slot, const PageIdentity& expect,
                              const PagePlace& place) const {
  const PageShape& shape = expect.shape;
  const auto differs = [&expect](const char* what) {
    return absl::DataLossError(
        absl::StrCat("block ", expect.hash.Hex().substr(0, 16), ": encrypted slot: ", what));
  };
  SealedTrailer trailer;
  std::memcpy(&trailer, slot + TrailerOffset(shape), sizeof trailer);
  if (trailer.magic != kSealedTrailerMagic) return differs("not an encrypted page");
  if (trailer.version != kSealedTrailerVersion) return differs("another version");
  if (trailer.generation != place.generation) return differs("another generation");
  std::byte* const table = slot + transfer::SliceChecksumsOffset(shape);
  std::byte* const table_end = table + uint64_t{8} * shape.num_slices;
  if (trailer.zero != decltype(trailer.zero){} ||
      !IsZero(slot + shape.page_bytes(), slot + TrailerOffset(shape)) ||
      !IsZero(table_end, slot + shape.slot_bytes())) {
    return differs("padding is not zero");
  }
  const auto key = std::ranges::find(master_keys_->keys(), trailer.key_id, &MasterKeys::Key::id);
  if (key == master_keys_->keys().end()) return differs("its key is not in the key file");
  const auto key_index = static_cast<size_t>(key - master_keys_->keys().begin());
  {
    Gcm gcm(Gcm::Direction::kDecrypt, PageKey(epoch_keys_[key_index], place), trailer.nonce,
            Bind(expect, place, trailer.key_id));
    gcm.Update(slot, slot, shape.page_bytes());
    gcm.Update(table, table, static_cast<size_t>(table_end - table));
    if (!gcm.FinishAndCheckTag(trailer.tag)) return differs("not what we wrote there");
  }
  // Whoever had the slot mapped may have changed it between checksum and encryption.
  RETURN_IF_ERROR(transfer::VerifySlot(slot, expect));
  transfer::SealRecord(slot, expect, 0);
  std::memset(slot + TrailerOffset(shape) + offsetof(PageTrailer, record_checksum), 0,
              sizeof PageTrailer::record_checksum);
  return absl::OkStatus();
}

}  // namespace kvstore::tiers
