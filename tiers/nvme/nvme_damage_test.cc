// Bits that change on disk: in pages, in trailers, in padding, in the index. Every one is a miss.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/nvme_test_support.h"
#include "tiers/nvme/record_format.h"
#include "tiers/nvme/slot_record.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

// The extents, edited behind the tier's back. One directory: a slab's offset is its number.
class Extents {
 public:
  explicit Extents(const std::string& dir)
      : fd_(open((dir + "/pages").c_str(), O_RDWR | O_CLOEXEC)) {}
  ~Extents() { close(fd_); }
  static uint64_t Offset(PageId page) {
    return page.slab * (uint64_t{4} << 20) + page.slot * kTestShape.slot_bytes();
  }
  void Flip(PageId page, uint64_t at, int bit) {
    char byte;
    const auto offset = static_cast<off_t>(Offset(page) + at);
    ASSERT_EQ(pread(fd_, &byte, 1, offset), 1);
    byte = static_cast<char>(byte ^ (1 << bit));
    ASSERT_EQ(pwrite(fd_, &byte, 1, offset), 1);
  }
  std::string Load(PageId page) {
    std::string bytes(kTestShape.slot_bytes(), 0);
    EXPECT_EQ(pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(Offset(page))),
              static_cast<ssize_t>(bytes.size()));
    return bytes;
  }
  void Store(PageId page, const std::string& bytes) {
    ASSERT_EQ(pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(Offset(page))),
              static_cast<ssize_t>(bytes.size()));
  }
  std::string LoadRange(size_t bytes) {
    std::string out(bytes, 0);
    EXPECT_EQ(pread(fd_, out.data(), bytes, 0), static_cast<ssize_t>(bytes));
    return out;
  }
  void StoreRange(const std::string& bytes) {
    ASSERT_EQ(pwrite(fd_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }

 private:
  int fd_;
};

class NvmeDamageTest : public testing::Test {
 protected:
  std::unique_ptr<RunningTier> Start() {
    auto running = RunningTier::Start(TestOptions(directory_.path()));
    EXPECT_TRUE(running.ok()) << running.status();
    return *std::move(running);
  }
  TestDirectory directory_;
};

TEST_F(NvmeDamageTest, EveryFlippedBitBehindThePageIsDataLoss) {
  auto running = Start();
  Extents extents(directory_.path());
  TestPage content(1, kTestShape);
  const PageId page = *running->Store(content);
  uint64_t flips = 0;
  for (uint64_t at = kTestShape.page_bytes(); at < kTestShape.slot_bytes(); ++at) {
    const int bit = static_cast<int>(at % 8);
    extents.Flip(page, at, bit);
    ASSERT_TRUE(absl::IsDataLoss(running->Check(page, content))) << at;
    extents.Flip(page, at, bit);
    ++flips;
  }
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
  EXPECT_EQ(running->stats().checksum_errors, flips);
}

TEST_F(NvmeDamageTest, FlippedBitsInThePageAreDataLoss) {
  auto running = Start();
  Extents extents(directory_.path());
  TestPage content(1, kTestShape);
  const PageId page = *running->Store(content);
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    const uint64_t at = random() % kTestShape.page_bytes();
    const int bit = static_cast<int>(random() % 8);
    extents.Flip(page, at, bit);
    ASSERT_TRUE(absl::IsDataLoss(running->Check(page, content))) << at;
    extents.Flip(page, at, bit);
  }
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
}

// One bit anywhere in the slot: no slice is told that holds it, none at all if it lies behind them.
TEST_F(NvmeDamageTest, ASliceThatDiffersIsNeverTold) {
  NvmeOptions options = TestOptions(directory_.path());
  options.piece_bytes = 4096;
  auto running = *RunningTier::Start(options);
  Extents extents(directory_.path());
  TestPage content(1, kTestShape), into(kTestShape);
  const PageId page = *running->Store(content);
  std::mt19937_64 random(7);
  for (int i = 0; i < 300; ++i) {
    const uint64_t at = random() % kTestShape.slot_bytes();
    const uint64_t slice = at < kTestShape.page_bytes() ? at / kTestShape.slice_bytes : 0;
    const int bit = static_cast<int>(random() % 8);
    extents.Flip(page, at, bit);
    uint32_t told = 0;
    const absl::Status status =
        running->ReadBySlices(page, content.identity(), into.region(), [&](uint32_t ready) {
          told = ready;
          EXPECT_EQ(std::memcmp(into.region().data, content.region().data,
                                uint64_t{ready} * kTestShape.slice_bytes),
                    0);
        });
    EXPECT_TRUE(absl::IsDataLoss(status)) << at;
    EXPECT_LE(told, slice) << at;
    extents.Flip(page, at, bit);
  }
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
}

TEST_F(NvmeDamageTest, AnotherSlotsBytesAreDataLoss) {
  auto running = Start();
  Extents extents(directory_.path());
  TestPage first(1, kTestShape), second(2, kTestShape);
  const PageId first_page = *running->Store(first), second_page = *running->Store(second);
  extents.Store(second_page, extents.Load(first_page));
  EXPECT_TRUE(absl::IsDataLoss(running->Check(second_page, second)));
  EXPECT_EQ(running->Check(first_page, first), absl::OkStatus());
}

// The same block, the same bytes, but of the slot's former use: what a lost write looks like.
TEST_F(NvmeDamageTest, TheSlotsFormerContentIsDataLoss) {
  auto running = Start();
  Extents extents(directory_.path());
  TestPage content(1, kTestShape);
  const PageId page = *running->Store(content);
  const std::string former = extents.Load(page);
  running->Release(page);
  const PageId again = *running->Store(content);
  ASSERT_EQ(again.slot, page.slot);
  EXPECT_EQ(running->Check(again, content), absl::OkStatus());
  extents.Store(again, former);
  const absl::Status status = running->Check(again, content);
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation"));
}

TEST_F(NvmeDamageTest, ZeroesAndATornWriteAreDataLoss) {
  auto running = Start();
  Extents extents(directory_.path());
  TestPage content(1, kTestShape), other(2, kTestShape);
  const PageId page = *running->Store(content);
  const std::string whole = extents.Load(page);
  extents.Store(page, std::string(whole.size(), 0));
  EXPECT_TRUE(absl::IsDataLoss(running->Check(page, content)));
  for (size_t kept = 4096; kept < whole.size(); kept += 4096) {
    std::string torn = whole;
    std::fill(torn.begin() + static_cast<ptrdiff_t>(kept), torn.end(), '\x5a');
    extents.Store(page, torn);
    EXPECT_TRUE(absl::IsDataLoss(running->Check(page, content))) << kept;
  }
  extents.Store(page, whole);
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
}

TEST_F(NvmeDamageTest, AQuarantinedSlotIsNotUsedAgain) {
  auto running = Start();
  TestPage content(1, kTestShape);
  const PageId bad = *running->Store(content);
  running->OnCore([&] { running->tier().Quarantine(bad); });
  EXPECT_EQ(running->stats().quarantined_pages, 1u);
  for (int i = 0; i < 200; ++i) {
    auto page = running->Reserve();
    ASSERT_TRUE(page.ok());
    EXPECT_FALSE(page->slab == bad.slab && page->slot == bad.slot);
  }
}

// Edits of the index through RocksDB itself: checksums of its own do not help there.
class NvmeIndexEditTest : public NvmeDamageTest {
 protected:
  void Edit(const std::function<void(rocksdb::DB&, const std::string& key,
                                     const std::string& value)>& edit) {
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, directory_.file("index"), &raw).ok());
    std::unique_ptr<rocksdb::DB> db(raw);
    std::map<std::string, std::string> all;
    {
      std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
      for (it->SeekToFirst(); it->Valid(); it->Next()) {
        if (it->key()[0] == kRecordKeyPrefix) all[it->key().ToString()] = it->value().ToString();
      }
    }
    for (const auto& [key, value] : all) edit(*db, key, value);
  }
  void StoreSome(uint32_t count) {
    auto running = Start();
    for (uint32_t i = 0; i < count; ++i) ASSERT_TRUE(running->Store(TestPage(i, kTestShape)).ok());
  }
};

TEST_F(NvmeIndexEditTest, ARecordWithAnyChangedByteNeverYieldsWrongBytes) {
  StoreSome(2);
  std::string value_of_0;
  size_t value_bytes = 0;
  Edit([&](rocksdb::DB&, const std::string&, const std::string& value) {
    value_bytes = value.size();
  });
  ASSERT_EQ(value_bytes, 89u);
  for (size_t at = 0; at < value_bytes; at += 3) {
    std::string original_key, original_value;
    Edit([&](rocksdb::DB& db, const std::string& key, const std::string& value) {
      if (!original_key.empty()) return;
      original_key = key;
      original_value = value;
      std::string changed = value;
      changed[at] = static_cast<char>(changed[at] ^ 0x04);
      ASSERT_TRUE(db.Put({}, key, changed).ok());
    });
    {
      auto running = Start();
      const auto recovered = running->Recover();
      EXPECT_EQ(recovered.finished, absl::OkStatus());
      EXPECT_GE(recovered.pages.size(), 1u);
      for (const RecoveredPage& page : recovered.pages) {
        TestPage into(kTestShape);
        const absl::Status status = running->Read(page.page, page.identity, into.region());
        TestPage content(page.identity.block_index, kTestShape);
        const bool is_untouched = page.identity.block_index == 1;
        EXPECT_EQ(status.ok(), is_untouched) << at << " " << status;
        EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
      }
    }
    Edit([&](rocksdb::DB& db, const std::string& key, const std::string&) {
      if (key == original_key) db.Put({}, key, original_value);
    });
    // Undecodable ones were dropped: put it back for the next round.
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, directory_.file("index"), &raw).ok());
    std::unique_ptr<rocksdb::DB> db(raw);
    ASSERT_TRUE(db->Put({}, original_key, original_value).ok());
  }
}

TEST_F(NvmeIndexEditTest, ImpossibleRecordsAreDroppedAndCounted) {
  StoreSome(6);
  int number = 0;
  Edit([&](rocksdb::DB& db, const std::string& key, const std::string& value) {
    Record record = *DecodeRecord(key, value);
    RecordKey other{record.identity.fingerprint, record.identity.epoch, record.identity.block_index,
                    record.slab, record.slot};
    switch (number++) {
      case 0:  // cut short
        db.Put({}, key, value.substr(0, 50));
        break;
      case 1:  // a slab that does not exist
        db.Delete({}, key);
        other.slab = 1 << 30;
        db.Put({}, EncodeRecordKey(other), value);
        break;
      case 2:  // a slot behind the end of the slab
        db.Delete({}, key);
        other.slot = 4000000000;
        db.Put({}, EncodeRecordKey(other), value);
        break;
      case 3: {  // a shape for which nobody opened a pool
        PageIdentity identity = record.identity;
        identity.shape = {1, 4096};
        db.Put({}, key, EncodeRecordValue(identity, record.generation));
        break;
      }
      case 4:  // a second claim on the slot
        other.block_index = 77;
        db.Put({}, EncodeRecordKey(other), value);
        break;
      default:
        break;
    }
  });
  auto running = Start();
  const auto recovered = running->Recover();
  EXPECT_EQ(recovered.finished, absl::OkStatus());
  EXPECT_EQ(recovered.pages.size(), 2u);
  const RecoveryCounts counts = running->tier().recovery();
  EXPECT_EQ(counts.undecodable, 1u);
  EXPECT_EQ(counts.out_of_range, 2u);
  EXPECT_EQ(counts.unknown_pools, 1u);
  EXPECT_EQ(counts.duplicates, 1u);
  EXPECT_EQ(running->CheckInvariants(), absl::OkStatus());
  running.reset();
  running = Start();
  EXPECT_EQ(running->Recover().pages.size(), 2u);
  EXPECT_EQ(running->tier().recovery().undecodable, 0u);  // they are gone for good
}

// Raw damage to the index's own files.
class NvmeIndexFilesTest : public NvmeDamageTest {
 protected:
  static constexpr uint32_t kCount = 100;
  void SetUp() override {
    {
      auto running = Start();
      ASSERT_EQ(running->SaveMetadata("namespace", "spec"), absl::OkStatus());
      for (uint32_t i = 0; i < kCount; ++i) {
        ASSERT_TRUE(running->Store(TestPage(i, kTestShape)).ok());
      }
    }
    { Start()->Recover(); }  // what was in the log goes into a table file
    fs::copy(directory_.file("index"), backup_.file("index"), fs::copy_options::recursive);
    pages_ = Extents(directory_.path()).LoadRange((kCount + 2) * kTestShape.slot_bytes());
  }
  void Restore() {
    for (const auto& item : fs::directory_iterator(directory_.path())) {
      if (item.path().filename().string().rfind("index", 0) == 0) fs::remove_all(item.path());
    }
    fs::copy(backup_.file("index"), directory_.file("index"), fs::copy_options::recursive);
    Extents(directory_.path()).StoreRange(pages_);  // rounds that lost the index wrote over some
  }
  std::vector<std::string> Files(const std::string& part) {
    std::vector<std::string> names;
    for (const auto& item : fs::directory_iterator(backup_.file("index"))) {
      const std::string name = item.path().filename().string();
      if (name.find(part) != std::string::npos && item.file_size() > 0) names.push_back(name);
    }
    return names;
  }
  // Starts, recovers, reads everything that was found; returns how many pages that were.
  size_t StartAndCheck(std::string* note) {
    auto running = RunningTier::Start(TestOptions(directory_.path()));
    EXPECT_TRUE(running.ok()) << running.status();
    if (!running.ok()) return 0;
    const auto recovered = (*running)->Recover();
    EXPECT_EQ(recovered.finished, absl::OkStatus());
    for (const RecoveredPage& page : recovered.pages) {
      EXPECT_EQ((*running)->Check(page.page, TestPage(page.identity.block_index, kTestShape)),
                absl::OkStatus());
    }
    auto fresh = (*running)->Store(TestPage(5000, kTestShape));
    EXPECT_TRUE(fresh.ok()) << fresh.status();
    *note = (*running)->degraded();
    return recovered.pages.size();
  }
  TestDirectory backup_;
  std::string pages_;
};

TEST_F(NvmeIndexFilesTest, AFlippedByteAnywhereDoesNotPreventAStart) {
  int forgotten = 0;
  for (const char* part : {".sst", ".log", "MANIFEST", "CURRENT", "OPTIONS", "IDENTITY"}) {
    for (const std::string& name : Files(part)) {
      const auto bytes = fs::file_size(backup_.file("index/" + name));
      for (int step = 0; step < 12; ++step) {
        SCOPED_TRACE(absl::StrCat(name, " at ", step, "/12 of ", bytes));
        Restore();
        {
          std::fstream file(directory_.file("index/" + name),
                            std::ios::in | std::ios::out | std::ios::binary);
          const auto at = static_cast<std::streamoff>(bytes * step / 12);
          file.seekg(at);
          const char byte = static_cast<char>(file.get());
          file.seekp(at);
          file.put(static_cast<char>(byte ^ 0x40));
        }
        std::string note;
        const size_t found = StartAndCheck(&note);
        if (found == kCount) continue;
        ++forgotten;
        const bool is_log = name.find(".log") != std::string::npos;
        if (!is_log) {  // a cut log looks like one that was being written
          EXPECT_THAT(note, HasSubstr("index was damaged"));
          EXPECT_TRUE(fs::exists(directory_.file("index.damaged")));
        }
      }
    }
  }
  EXPECT_GT(forgotten, 0);  // the flips were real
}

TEST_F(NvmeIndexFilesTest, AMissingFileDoesNotPreventAStart) {
  for (const char* part : {".sst", "MANIFEST", "CURRENT"}) {
    for (const std::string& name : Files(part)) {
      SCOPED_TRACE(name);
      Restore();
      fs::remove(directory_.file("index/" + name));
      std::string note;
      EXPECT_LT(StartAndCheck(&note), kCount);
    }
  }
  Restore();
  fs::remove_all(directory_.file("index"));
  std::string note;
  EXPECT_EQ(StartAndCheck(&note), 0u);
}

}  // namespace
}  // namespace kvstore::tiers
