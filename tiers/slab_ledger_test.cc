#include "tiers/slab_ledger.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

namespace kvstore::tiers {
namespace {

constexpr PageShape kShape{.num_slices = 2, .slice_bytes = 1000};
constexpr uint64_t kSlab = 64 << 10;
const uint64_t kSlotBytes = kShape.slot_bytes();

SlabLedger::Geometry TestGeometry() {
  SlabLedger::Geometry geometry{.slab_bytes = kSlab, .num_slabs = 2, .metadata_bytes = 4096};
  geometry.boot[3] = 9;
  return geometry;
}

PageIdentity Identity(uint32_t number) {
  PageIdentity identity{.shape = kShape, .epoch = 7, .block_index = number};
  identity.fingerprint.bytes[1] = 5;
  std::memcpy(identity.hash.bytes.data(), &number, sizeof number);
  identity.parent.bytes[0] = 8;
  identity.page_checksum = uint64_t{number} * 1000003 + 1;
  return identity;
}
bool IsSame(const PageIdentity& a, const PageIdentity& b) {
  return a.shape == b.shape && a.fingerprint == b.fingerprint && a.epoch == b.epoch &&
         a.hash == b.hash && a.parent == b.parent && a.block_index == b.block_index &&
         a.page_checksum == b.page_checksum;
}

// Zeroed memory for a ledger, which a child process shares.
class LedgerMemory {
 public:
  explicit LedgerMemory(const SlabLedger::Geometry& geometry = TestGeometry())
      : bytes_(SlabLedger::BytesFor(geometry)),
        data_(static_cast<std::byte*>(
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~LedgerMemory() { munmap(data_, bytes_); }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  absl::StatusOr<SlabLedger> Attach(const SlabLedger::Geometry& geometry = TestGeometry()) const {
    return SlabLedger::Attach(data_, bytes_, geometry);
  }

 private:
  const size_t bytes_;
  std::byte* const data_;
};

// As every version of the program has to understand it.
SlabLedger WriteExample(std::byte* memory) {
  SlabLedger ledger = SlabLedger::Format(memory, TestGeometry(), 0x1122334455667788);
  EXPECT_EQ(*ledger.CountStart(), 1u);
  EXPECT_TRUE(ledger
                  .WriteSlab(0, {.id = 4,
                                 .mark = {.slab = 100, .generations = 101},
                                 .slot_bytes = kSlotBytes,
                                 .tenant = "tenant-a"})
                  .ok());
  EXPECT_TRUE(ledger
                  .WriteSlab(1, {.id = 5,
                                 .mark = {.slab = 102, .generations = 103},
                                 .slot_bytes = 0,
                                 .tenant = std::nullopt})
                  .ok());
  for (uint32_t slot = 0; slot < 4; ++slot) ledger.NoteReserved(0, slot);
  ledger.NotePage(0, 0, Identity(0));
  ledger.NotePage(0, 1, Identity(1));
  ledger.NotePage(0, 3, Identity(3));
  ledger.NoteFree(0, 3);
  EXPECT_TRUE(ledger.SaveMetadata({{"ns/a", "one"}}).ok());
  EXPECT_TRUE(ledger.SaveMetadata({{"ns/a", "two"}, {"quota/b", "three"}}).ok());
  return ledger;
}

void ExpectExample(const SlabLedger& ledger) {
  const auto slab = ledger.ReadSlab(0);
  ASSERT_TRUE(slab.has_value());
  EXPECT_EQ(slab->id, 4u);
  EXPECT_EQ(slab->mark, (SlabMark{100, 101}));
  EXPECT_EQ(slab->tenant, "tenant-a");
  EXPECT_EQ(slab->slot_bytes, kSlotBytes);
  EXPECT_EQ(ledger.slots_of(0), kSlab / kSlotBytes);
  ASSERT_TRUE(ledger.ReadSlab(1).has_value());
  EXPECT_FALSE(ledger.ReadSlab(1)->tenant.has_value());
  for (uint32_t slot = 0; slot < 2; ++slot) {
    const SlabLedger::Slot page = ledger.ReadSlot(0, slot);
    EXPECT_EQ(page.state, SlabLedger::SlotState::kPage);
    EXPECT_TRUE(IsSame(page.identity, Identity(slot)));
  }
  EXPECT_EQ(ledger.ReadSlot(0, 2).state, SlabLedger::SlotState::kReserved);
  EXPECT_EQ(ledger.ReadSlot(0, 3).state, SlabLedger::SlotState::kFree);
  EXPECT_EQ(ledger.ReadSlot(0, 4).state, SlabLedger::SlotState::kFree);
  EXPECT_EQ(ledger.LoadMetadata(), (SlabLedger::Metadata{{"ns/a", "two"}, {"quota/b", "three"}}));
}

TEST(SlabLedger, TheNextProcessFindsWhatWasNoted) {
  const LedgerMemory memory;
  WriteExample(memory.data());
  absl::StatusOr<SlabLedger> ledger = memory.Attach();
  ASSERT_TRUE(ledger.ok()) << ledger.status();
  ExpectExample(*ledger);
  EXPECT_EQ(*ledger->CountStart(), 2u);
}

TEST(SlabLedger, GoldenBytesOfVersion1AreReadAndWritten) {
  const std::string path = std::string(GOLDEN_DIR) + "/ledger_v1";
  const LedgerMemory memory;
  WriteExample(memory.data());
  if (std::getenv("KVSTORE_WRITE_GOLDEN") != nullptr) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(memory.data()),
               static_cast<std::streamsize>(memory.bytes()));
  }
  std::ifstream in(path, std::ios::binary);
  const std::string golden(std::istreambuf_iterator<char>(in), {});
  ASSERT_EQ(golden.size(), memory.bytes());
  EXPECT_EQ(std::memcmp(golden.data(), memory.data(), golden.size()), 0)
      << "the format has changed: give it another version";
  std::memcpy(memory.data(), golden.data(), golden.size());
  const absl::StatusOr<SlabLedger> ledger = memory.Attach();
  ASSERT_TRUE(ledger.ok()) << ledger.status();
  ExpectExample(*ledger);
}

TEST(SlabLedger, AnotherVersionBootOrGeometryIsRefusedByName) {
  const LedgerMemory memory;
  WriteExample(memory.data());
  SlabLedger::Geometry other = TestGeometry();
  other.boot[0] ^= 1;
  EXPECT_EQ(memory.Attach(other).status().code(), absl::StatusCode::kFailedPrecondition);
  other = TestGeometry();
  other.num_slabs = 3;
  EXPECT_EQ(memory.Attach(other).status().message(),
            "it has 2 slabs of 65536 bytes, and tier.dram.bytes asks for 3 of 65536");
  other = TestGeometry();
  other.slab_bytes *= 2;
  EXPECT_EQ(memory.Attach(other).status().code(), absl::StatusCode::kFailedPrecondition);
  memory.data()[8] = std::byte{2};
  EXPECT_EQ(memory.Attach().status().message(),
            "its ledger has version 2, this program knows version 1");
}

TEST(SlabLedger, EntriesAreRightForTheirPlaceAndCutOnly) {
  const LedgerMemory memory;
  SlabLedger ledger = WriteExample(memory.data());
  std::byte* const entries = memory.data() + SlabLedger::BytesFor(TestGeometry()) - 4096;
  std::memcpy(entries + 5 * 128, entries, 128);  // slot 0's at slot 5
  EXPECT_EQ(ledger.ReadSlot(0, 5).state, SlabLedger::SlotState::kDamaged);
  ASSERT_TRUE(ledger
                  .WriteSlab(0, {.id = 4,
                                 .mark = {.slab = 100, .generations = 101},
                                 .slot_bytes = 2 * kSlotBytes,
                                 .tenant = "tenant-a"})
                  .ok());
  EXPECT_EQ(ledger.ReadSlot(0, 0).state, SlabLedger::SlotState::kDamaged) << "another slot size";
}

// Whatever is flipped: an entry is what was noted, or is not there.
TEST(SlabLedger, FlippedBitsNeverMakeAnotherPage) {
  const LedgerMemory pristine, memory;
  WriteExample(pristine.data());
  std::mt19937 random(4);
  int refused = 0, missing = 0;
  for (int round = 0; round < 20000; ++round) {
    std::memcpy(memory.data(), pristine.data(), pristine.bytes());
    for (uint32_t flips = 1 + random() % 3; flips > 0; --flips) {
      // Where there is something: not only in zeros.
      size_t at = random() % memory.bytes();
      for (int tries = 0; pristine.data()[at] == std::byte{0} && tries < 200; ++tries)
        at = random() % memory.bytes();
      memory.data()[at] ^= static_cast<std::byte>(1u << random() % 8);
    }
    const absl::StatusOr<SlabLedger> ledger = memory.Attach();
    if (!ledger.ok()) {
      ++refused;
      continue;
    }
    const SlabLedger::Metadata metadata = ledger->LoadMetadata();
    EXPECT_TRUE(metadata.at("ns/a") == "two") << "an older epoch came back";
    for (uint32_t slot = 0; slot < ledger->slots_of(0); ++slot) {
      const SlabLedger::Slot found = ledger->ReadSlot(0, slot);
      if (found.state == SlabLedger::SlotState::kPage) {
        ASSERT_LT(slot, 2u) << "a page where there is none, round " << round;
        ASSERT_TRUE(IsSame(found.identity, Identity(slot))) << "round " << round;
      } else {
        missing += slot < 2;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(missing, 1000);
}

// Never returns: changes slots, slabs and metadata until it is killed. Pages of slot s have numbers
// that are s modulo 4; the metadata's two values are always equal.
[[noreturn]] void KeepChanging(SlabLedger ledger, uint32_t seed) {
  std::mt19937 random(seed);
  for (uint32_t n = 0;; ++n) {
    const uint32_t slot = random() % 4;
    ledger.NoteReserved(0, slot);
    ledger.NotePage(0, slot, Identity(slot + 4 * (random() % 100000)));
    if (n % 3 == 0) ledger.NoteFree(0, slot);
    const std::string value = std::to_string(random());
    if (n % 5 == 0) (void)ledger.SaveMetadata({{"a", value}, {"b", value}});
  }
}

TEST(SlabLedger, ADeathAtAnyInstructionLeavesEntriesRightOrAbsent) {
  constexpr int kKills = 1000;
  std::mt19937 random(11);
  int pages = 0, reserved = 0, damaged = 0;
  for (int round = 0; round < kKills; ++round) {
    const LedgerMemory memory;
    SlabLedger ledger = SlabLedger::Format(memory.data(), TestGeometry(), random());
    ASSERT_TRUE(
        ledger.WriteSlab(0, {.id = 1, .mark = {}, .slot_bytes = kSlotBytes, .tenant = "a"}).ok());
    const pid_t child = fork();
    if (child == 0) KeepChanging(ledger, static_cast<uint32_t>(round));
    usleep(200 + random() % 1500);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const absl::StatusOr<SlabLedger> left = memory.Attach();
    ASSERT_TRUE(left.ok()) << left.status();
    for (uint32_t slot = 0; slot < 4; ++slot) {
      const SlabLedger::Slot found = left->ReadSlot(0, slot);
      pages += found.state == SlabLedger::SlotState::kPage;
      reserved += found.state == SlabLedger::SlotState::kReserved;
      damaged += found.state == SlabLedger::SlotState::kDamaged;
      if (found.state != SlabLedger::SlotState::kPage) continue;
      ASSERT_EQ(found.identity.block_index % 4, slot);
      ASSERT_TRUE(IsSame(found.identity, Identity(found.identity.block_index)))
          << "half of one page and half of another";
    }
    const SlabLedger::Metadata metadata = left->LoadMetadata();
    if (!metadata.empty()) {
      ASSERT_EQ(metadata.at("a"), metadata.at("b"));
    }
  }
  EXPECT_GT(pages, kKills);
  EXPECT_GT(reserved, 0) << "no kill came between two stores: nothing was shown";
  EXPECT_EQ(damaged, 0);
  std::printf("%d kills: %d pages, %d reserved\n", kKills, pages, reserved);
}

}  // namespace
}  // namespace kvstore::tiers
