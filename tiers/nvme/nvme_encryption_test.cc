// The tier with encryption: keys at start, rotation, clearing, and what an attacker with the disk
// can do.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

std::string Bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class NvmeEncryptionTest : public testing::Test {
 protected:
  NvmeEncryptionTest() { WriteKeys("1 " + std::string(64, 'a') + "\n"); }
  void WriteKeys(const std::string& text, mode_t mode = 0400) {
    fs::remove(key_file_);
    std::ofstream(key_file_) << text;
    chmod(key_file_.c_str(), mode);
  }
  NvmeOptions Options(std::vector<std::string> encrypt = {"*"}) {
    NvmeOptions options = TestOptions(dir_);
    options.encrypt = std::move(encrypt);
    if (!options.encrypt.empty()) options.key_file = key_file_;
    return options;
  }
  std::unique_ptr<RunningTier> Start(std::vector<std::string> encrypt = {"*"}) {
    auto running = RunningTier::Start(Options(std::move(encrypt)));
    EXPECT_TRUE(running.ok()) << running.status();
    return running.ok() ? *std::move(running) : nullptr;
  }
  std::string Refusal() {
    const absl::Status status = RunningTier::Start(Options()).status();
    return status.ok() ? "" : std::string(status.message());
  }
  void StoreSome(uint32_t first, uint32_t count) {
    auto running = Start();
    (void)running->Recover();
    for (uint32_t i = first; i < first + count; ++i) {
      ASSERT_TRUE(running->Store(TestPage(i, kTestShape)).ok());
    }
  }
  // Pages found by a start that read back right; everything else found fails the test.
  size_t CountReadable(std::vector<std::string> encrypt = {"*"}) {
    auto running = Start(std::move(encrypt));
    const auto recovered = running->Recover();
    counts_ = running->tier().recovery();
    for (const RecoveredPage& page : recovered.pages) {
      const TestPage content(page.identity.block_index, kTestShape, page.identity.epoch);
      EXPECT_EQ(running->Check(page.page, content), absl::OkStatus());
    }
    return recovered.pages.size();
  }
  static uint64_t Offset(PageId page) {
    return page.slab * (uint64_t{4} << 20) + page.slot * kTestShape.slot_bytes();
  }
  std::string LoadSlot(PageId page) {
    return Bytes(dir_ + "/pages").substr(Offset(page), kTestShape.slot_bytes());
  }
  void StoreSlot(PageId page, const std::string& bytes) {
    std::fstream file(dir_ + "/pages", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(Offset(page)));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  TestDirectory root_;
  const std::string dir_ = root_.file("nvme");
  const std::string key_file_ = root_.file("keys");
  RecoveryCounts counts_;
};

TEST_F(NvmeEncryptionTest, PagesSurviveRestartsAndAreNotOnDisk) {
  StoreSome(0, 8);
  EXPECT_EQ(CountReadable(), 8u);
  const std::string pages = Bytes(dir_ + "/pages");
  for (uint32_t i = 0; i < 8; ++i) {
    TestPage page(i, kTestShape);
    const std::string piece(reinterpret_cast<const char*>(page.region().data + 1000), 16);
    EXPECT_EQ(pages.find(piece), std::string::npos) << i;
  }
  struct stat found {};
  ASSERT_EQ(stat((dir_ + "/secrets").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0600u);
}

// Its tag covers the whole page.
TEST_F(NvmeEncryptionTest, NoSliceIsToldOfAnEncryptedPage) {
  NvmeOptions options = Options();
  options.piece_bytes = 4096;
  auto running = *RunningTier::Start(options);
  running->Recover();
  TestPage content(1, kTestShape), into(kTestShape);
  const auto page = running->Store(content);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(running->ReadBySlices(*page, content.identity(), into.region(),
                                  [](uint32_t) { ADD_FAILURE() << "told"; }),
            absl::OkStatus());
  EXPECT_TRUE(into.SameBytes(content));
}

TEST_F(NvmeEncryptionTest, ManyWritesAtOnceShareAFewBuffers) {
  auto running = Start();
  std::vector<std::unique_ptr<TestPage>> contents;
  std::vector<PageId> pages;
  for (uint32_t i = 0; i < 60; ++i) {
    contents.push_back(std::make_unique<TestPage>(i, kTestShape));
    pages.push_back(*running->Reserve());
  }
  std::vector<absl::Status> statuses(60, absl::UnknownError("not called"));
  absl::Notification all;
  running->OnCore([&] {
    auto left = std::make_shared<int>(60);
    for (size_t i = 0; i < 60; ++i) {
      running->tier().Write(pages[i], contents[i]->identity(), contents[i]->region(),
                            absl::InfiniteFuture(), [&, i, left](absl::Status status) {
                              statuses[i] = std::move(status);
                              if (--*left == 0) all.Notify();
                            });
    }
  });
  all.WaitForNotification();
  for (size_t i = 0; i < 60; ++i) {
    EXPECT_EQ(statuses[i], absl::OkStatus());
    EXPECT_EQ(running->Check(pages[i], *contents[i]), absl::OkStatus());
  }
}

TEST_F(NvmeEncryptionTest, AWrongKeyIsAClearErrorAtStart) {
  StoreSome(0, 2);
  WriteKeys("1 " + std::string(64, 'b') + "\n");
  EXPECT_THAT(Refusal(), HasSubstr("is not the key 1 that the directory was written with"));
  WriteKeys("7 " + std::string(64, 'a') + "\n");
  EXPECT_THAT(Refusal(), HasSubstr("has none of the keys (ID 1)"));
  WriteKeys("");
  EXPECT_THAT(Refusal(), HasSubstr("no key in it"));
  WriteKeys("1 " + std::string(64, 'a') + "\n", 0440);
  EXPECT_THAT(Refusal(), HasSubstr("group or others have access"));
  fs::remove(key_file_);
  EXPECT_THAT(Refusal(), HasSubstr("No such file"));
  fs::create_symlink("/dev/zero", key_file_);
  EXPECT_THAT(Refusal(), HasSubstr("symbolic link"));
  WriteKeys("1 " + std::string(64, 'a') + "\n");
  EXPECT_EQ(CountReadable(), 2u) << "the refused starts have harmed nothing";
}

TEST_F(NvmeEncryptionTest, OldKeysReadUntilTheyAreTakenOut) {
  StoreSome(0, 3);
  WriteKeys("1 " + std::string(64, 'a') + "\n2 " + std::string(64, 'b') + "\n");
  StoreSome(10, 4);
  EXPECT_EQ(CountReadable(), 7u);
  WriteKeys("2 " + std::string(64, 'b') + "\n");
  EXPECT_EQ(CountReadable(), 4u);
  EXPECT_EQ(counts_.unreadable, 3u);
  EXPECT_EQ(CountReadable(), 4u);
}

TEST_F(NvmeEncryptionTest, KeysRotateWithoutARestart) {
  const auto replace = [this](RunningTier& running, const std::string& keys) {
    WriteKeys(keys);
    absl::Status status;
    running.OnCore([&] { status = running.tier().ReplaceKeys(*MasterKeys::Read(key_file_)); });
    return status;
  };
  const std::string first = "1 " + std::string(64, 'a') + "\n";
  const std::string second = "2 " + std::string(64, 'b') + "\n";
  {
    auto running = Start();
    const TestPage before(1, kTestShape), after(2, kTestShape);
    const PageId old_page = *running->Store(before);
    EXPECT_THAT(std::string(replace(*running, "1 " + std::string(64, 'c') + "\n").message()),
                HasSubstr("is not the key 1"));
    EXPECT_EQ(replace(*running, first + second), absl::OkStatus());
    const PageId new_page = *running->Store(after);
    EXPECT_THAT(std::string(replace(*running, second).message()), HasSubstr("lacks key 1"));
    EXPECT_EQ(running->Check(old_page, before), absl::OkStatus());
    EXPECT_EQ(running->Check(new_page, after), absl::OkStatus());
  }
  WriteKeys(first + second);
  EXPECT_EQ(CountReadable(), 2u);
  WriteKeys(second);
  EXPECT_EQ(CountReadable(), 1u) << "what was written after the rotation is under the new key";
}

TEST_F(NvmeEncryptionTest, ClearedEpochsCannotBeReadFromAnyCopyOfTheDisk) {
  const Fingerprint fingerprint = TestPage::Identity(0, kTestShape).fingerprint;
  StoreSome(0, 3);
  const std::string secrets_before = Bytes(dir_ + "/secrets");
  fs::copy(dir_, root_.file("stolen"), fs::copy_options::recursive);
  fs::permissions(root_.file("stolen"), fs::perms::owner_all);
  {
    auto running = Start();
    const auto recovered = running->Recover();
    ASSERT_EQ(recovered.pages.size(), 3u);
    absl::Notification erased;
    absl::Status status;
    running->OnCore([&] {
      running->tier().EraseEpochs(fingerprint, 2, [&](absl::Status s) {
        status = std::move(s);
        erased.Notify();
      });
    });
    erased.WaitForNotification();
    EXPECT_EQ(status, absl::OkStatus());
    const absl::Status read = running->Check(recovered.pages[0].page, TestPage(0, kTestShape));
    EXPECT_TRUE(absl::IsDataLoss(read)) << read;
    // A late write of the old epoch makes no new secret; the new epoch does.
    EXPECT_FALSE(running->Store(TestPage(5, kTestShape, 1)).ok());
    EXPECT_TRUE(running->Store(TestPage(6, kTestShape, 2)).ok());
  }
  EXPECT_EQ(CountReadable(), 1u);
  EXPECT_EQ(counts_.unreadable, 3u);
  // All of the old disk with the new secrets, and the master key: nothing of the old epoch.
  fs::copy(dir_ + "/secrets", root_.file("stolen/secrets"), fs::copy_options::overwrite_existing);
  NvmeOptions options = Options();
  options.dirs = {root_.file("stolen")};
  auto thief = RunningTier::Start(options);
  ASSERT_TRUE(thief.ok()) << thief.status();
  EXPECT_EQ((*thief)->Recover().pages.size(), 0u);
  // The bytes of the old secret are nowhere in the directory.
  const std::string secret = secrets_before.substr(secrets_before.size() - 8 - 32, 32);
  for (const auto& file : fs::recursive_directory_iterator(dir_)) {
    if (!file.is_regular_file()) continue;
    EXPECT_EQ(Bytes(file.path().string()).find(secret), std::string::npos) << file.path();
  }
}

TEST_F(NvmeEncryptionTest, WhatTheConfigurationSaysDecidesNotWhatIsOnDisk) {
  StoreSome(0, 3);
  EXPECT_EQ(CountReadable({"somebody else"}), 0u) << "encrypted, and should not be";
  EXPECT_EQ(counts_.unreadable, 3u);
  {
    auto running = Start({"somebody else"});
    ASSERT_TRUE(running->Store(TestPage(4, kTestShape)).ok());
  }
  EXPECT_EQ(CountReadable({"somebody else"}), 1u);
  EXPECT_EQ(CountReadable(), 0u) << "plain, and should not be";
}

TEST_F(NvmeEncryptionTest, NamespacesAreChosenByName) {
  auto running = Start({"private"});
  running->OnCore([&] {
    running->tier().NameNamespace(TestPage::Identity(0, kTestShape).fingerprint, "private");
  });
  TestPage content(1, kTestShape);
  const PageId page = *running->Store(content);
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
  running.reset();
  EXPECT_EQ(Bytes(dir_ + "/pages")
                .find(std::string(reinterpret_cast<const char*>(content.region().data), 16)),
            std::string::npos);
}

// S6: an attacker who can write the disk, index included, and knows the format.
TEST_F(NvmeEncryptionTest, EditedPagesWithGoodChecksumsAreRejected) {
  auto running = Start();
  TestPage content(1, kTestShape), other(2, kTestShape);
  const PageId page = *running->Store(content), other_page = *running->Store(other);
  const std::string ours = LoadSlot(page);
  // A plain slot, every checksum right, in the place of the encrypted one.
  TestPage forged(1, kTestShape);
  transfer::SealRecord(forged.region().data, forged.identity(),
                       GenerationBase(1) + page.generation);
  StoreSlot(page, {reinterpret_cast<const char*>(forged.region().data), ours.size()});
  EXPECT_TRUE(absl::IsDataLoss(running->Check(page, content)));
  // The forged page under the encrypted trailer.
  std::string mixed = ours;
  mixed.replace(0, 4096, std::string(reinterpret_cast<const char*>(forged.region().data), 4096));
  StoreSlot(page, mixed);
  EXPECT_TRUE(absl::IsDataLoss(running->Check(page, content)));
  // Two valid slots, swapped.
  StoreSlot(page, LoadSlot(other_page));
  StoreSlot(other_page, ours);
  EXPECT_TRUE(absl::IsDataLoss(running->Check(page, content)));
  EXPECT_TRUE(absl::IsDataLoss(running->Check(other_page, other)));
  StoreSlot(page, ours);
  EXPECT_EQ(running->Check(page, content), absl::OkStatus());
}

// The same, with the index edited to match: the records say what the slots say.
TEST_F(NvmeEncryptionTest, MovedPagesAreRejectedAlsoWhenTheirRecordsMove) {
  PageId first, second;
  {
    auto running = Start();
    first = *running->Store(TestPage(1, kTestShape));
    second = *running->Store(TestPage(2, kTestShape));
  }
  const std::string first_bytes = LoadSlot(first), second_bytes = LoadSlot(second);
  StoreSlot(first, second_bytes);
  StoreSlot(second, first_bytes);
  {
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, dir_ + "/index", &raw).ok());
    std::unique_ptr<rocksdb::DB> db(raw);
    std::vector<std::pair<Record, std::string>> records;
    std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
    for (it->Seek("R"); it->Valid(); it->Next()) {
      const std::string value = it->value().ToString();
      records.emplace_back(*DecodeRecord(it->key().ToString(), value), value);
      ASSERT_TRUE(db->Delete({}, it->key()).ok());
    }
    ASSERT_EQ(records.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      const Record& record = records[i].first;
      const Record& place = records[1 - i].first;
      EXPECT_EQ(record.key_id, 1u);
      ASSERT_TRUE(db->Put({},
                          EncodeRecordKey({record.identity.fingerprint, record.identity.epoch,
                                           record.identity.block_index, place.slab, place.slot}),
                          records[i].second)
                      .ok());
    }
  }
  auto running = Start();
  const auto recovered = running->Recover();
  ASSERT_EQ(recovered.pages.size(), 2u);
  for (const RecoveredPage& page : recovered.pages) {
    const absl::Status status =
        running->Check(page.page, TestPage(page.identity.block_index, kTestShape));
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not what we wrote there"));
  }
}

TEST_F(NvmeEncryptionTest, RecordsThatClaimToBePlainAreDropped) {
  StoreSome(1, 1);
  {
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, dir_ + "/index", &raw).ok());
    std::unique_ptr<rocksdb::DB> db(raw);
    std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
    it->Seek("R");
    const Record record = *DecodeRecord(it->key().ToString(), it->value().ToString());
    ASSERT_TRUE(db->Put({}, it->key(), EncodeRecordValue(record.identity, record.generation)).ok());
  }
  EXPECT_EQ(CountReadable(), 0u);
  EXPECT_EQ(counts_.unreadable, 1u);
}

TEST_F(NvmeEncryptionTest, ADirectoryIsOfVersion2OnlyOnceItIsEncrypted) {
  const auto version = [this] {
    const std::string bytes = Bytes(dir_ + "/superblock");
    uint32_t value;
    std::memcpy(&value, bytes.data() + 8, sizeof value);
    return value;
  };
  { ASSERT_TRUE(Start({})->Store(TestPage(1, kTestShape)).ok()); }
  EXPECT_EQ(version(), 1u) << "a program that knows version 1 only can go on with it";
  { Start(); }
  EXPECT_EQ(version(), 2u);
  { Start({}); }
  EXPECT_EQ(version(), 2u) << "there may be encrypted pages";
}

TEST_F(NvmeEncryptionTest, DamagedSecretsAreAClearErrorAndNothingIsTouched) {
  StoreSome(0, 1);
  std::string secrets = Bytes(dir_ + "/secrets");
  const std::string whole = secrets;
  secrets[secrets.size() / 2] = static_cast<char>(secrets[secrets.size() / 2] ^ 1);
  std::ofstream(dir_ + "/secrets", std::ios::binary) << secrets;
  EXPECT_THAT(Refusal(), HasSubstr("checksum differs"));
  EXPECT_EQ(Bytes(dir_ + "/secrets"), secrets);
  std::ofstream(dir_ + "/secrets", std::ios::binary) << whole;
  EXPECT_EQ(CountReadable(), 1u);
}

TEST_F(NvmeEncryptionTest, KeysAndNamespacesAreGivenTogether) {
  NvmeOptions options = Options();
  options.key_file.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(RunningTier::Start(options).status()));
}

}  // namespace
}  // namespace kvstore::tiers
