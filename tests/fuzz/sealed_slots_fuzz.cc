// An encrypted slot that was read back from disk.
//
//   input: as slots_fuzz
//
// Promises: only the bytes that were sealed are opened, for that block, epoch and place; what is
// opened is the slot as it was in memory. Whoever has no key makes none of it.
#include "kvstore/base/page_trailer.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/page_identity.h"
#include "tiers/nvme/page_cipher.h"
#include "transfer/memory/page_codec.h"

namespace kvstore {
namespace {

const tiers::PageCipher& Cipher() {
  static const tiers::PageCipher* const cipher = [] {
    const std::string key(64, 'a');
    auto keys = tiers::MasterKeys::Parse("1 " + std::string(64, '1') + "\n2 " + key, "keys");
    REQUIRE(keys.ok());
    return new tiers::PageCipher(*std::move(keys), Fingerprint{}, 3, tiers::EpochSecret{});
  }();
  return *cipher;
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  const bool is_raw = (input.Take<uint8_t>() & 1) != 0;
  PageIdentity identity = fuzz::TakeIdentity(input);
  const PageShape& shape = identity.shape;
  const tiers::PagePlace place{.slab = 1, .slot = 2, .generation = 7};
  std::string saved(shape.slot_bytes(), '\0');
  const std::string page(shape.page_bytes(), 'k');
  auto* slot = reinterpret_cast<std::byte*>(saved.data());
  identity.page_checksum =
      transfer::CopyIntoSlot(slot, reinterpret_cast<const std::byte*>(page.data()), identity);
  std::string on_disk(shape.slot_bytes(), 'x');
  // The same bytes in every run.
  const std::array<uint8_t, 12> nonce{1, 2, 3};
  REQUIRE(Cipher()
              .Seal(reinterpret_cast<std::byte*>(on_disk.data()), slot, identity, place, &nonce)
              .ok());
  REQUIRE(on_disk.find(std::string(16, 'k')) == std::string::npos);

  std::string read = on_disk;
  if (is_raw) {
    read = fuzz::Copy(input.TakeBytes(shape.slot_bytes()));
    read.resize(shape.slot_bytes());
  } else {
    fuzz::Edit(input, read);
  }
  const bool is_same = read == on_disk;
  std::string moved = read;
  const tiers::PagePlace elsewhere{.slab = 1, .slot = 3, .generation = 7};
  REQUIRE(!Cipher().Open(reinterpret_cast<std::byte*>(moved.data()), identity, elsewhere).ok());
  const bool is_accepted =
      Cipher().Open(reinterpret_cast<std::byte*>(read.data()), identity, place).ok();
  REQUIRE(is_accepted == is_same);
  if (is_accepted) REQUIRE(read == saved);
  return 0;
}
