// Directories that former programs wrote (tests/golden/nvme): they are read as they were meant, by
// this program and by all that come after it.
//
//   v1: written by the program of version 1 (before encryption), three pages, one of them released
//   v2: all namespaces encrypted, key 1 = 64 times `a`, the same pages and metadata
//
// To add one: nvme_golden_test --gtest_also_run_disabled_tests --gtest_filter=*MakesADirectory
// prints where it lies.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

namespace fs = std::filesystem;

constexpr PageShape kGoldenShape{.num_slices = 2, .slice_bytes = 1000};
constexpr PoolId kGoldenPool{99};  // what RunningTier says of other shapes

NvmeOptions GoldenOptions(const std::string& dir) {
  NvmeOptions options{.dirs = {dir}, .index_bytes = 4 << 20, .extent_bytes = 64 << 10};
  options.capacity_bytes = (4 << 20) + kDirectoryBytesMax + options.extent_bytes;
  return options;
}

class NvmeGoldenTest : public testing::Test {
 protected:
  // Git keeps no modes.
  void CopyGolden(const std::string& name) {
    fs::copy(fs::path(GOLDEN_DIR) / name, dir_, fs::copy_options::recursive);
    chmod(dir_.c_str(), 0700);
    for (const auto& item : fs::recursive_directory_iterator(dir_)) {
      chmod(item.path().c_str(), item.is_directory() ? 0700 : 0600);
    }
  }
  void UseKeys() {
    std::ofstream(key_file_) << "1 " << std::string(64, 'a') << "\n";
    chmod(key_file_.c_str(), 0400);
    options_.encrypt = {"*"};
    options_.key_file = key_file_;
  }
  std::unique_ptr<RunningTier> Start() {
    auto running = RunningTier::Start(options_);
    EXPECT_TRUE(running.ok()) << running.status();
    if (!running.ok()) return nullptr;
    (*running)->OnCore([&] {
      (void)(*running)->tier().OpenPool(
          kGoldenPool, {.tenant = "default", .slot_bytes = kGoldenShape.slot_bytes()});
    });
    return *std::move(running);
  }
  // Pages 0 and 2, whole, and the metadata.
  void ExpectGoldenContent() {
    auto running = Start();
    ASSERT_NE(running, nullptr);
    const auto recovered = running->Recover();
    EXPECT_EQ(recovered.finished, absl::OkStatus());
    EXPECT_EQ(recovered.metadata, (std::map<std::string, std::string>{{"key", "value"}}));
    ASSERT_EQ(recovered.pages.size(), 2u);
    for (const RecoveredPage& page : recovered.pages) {
      EXPECT_EQ(page.identity.block_index % 2, 0u);
      EXPECT_EQ(running->Check(page.page, TestPage(page.identity.block_index, kGoldenShape)),
                absl::OkStatus());
    }
  }
  uint32_t Version() const {
    std::ifstream in(dir_ + "/superblock", std::ios::binary);
    uint32_t version = 0;
    in.seekg(8);
    in.read(reinterpret_cast<char*>(&version), sizeof version);
    return version;
  }

  TestDirectory root_;
  const std::string dir_ = root_.file("nvme");
  const std::string key_file_ = root_.file("keys");
  NvmeOptions options_ = GoldenOptions(dir_);
};

TEST_F(NvmeGoldenTest, Version1IsReadAndStaysVersion1) {
  CopyGolden("v1");
  ASSERT_EQ(Version(), 1u);
  ExpectGoldenContent();
  ExpectGoldenContent();  // as this program has left it
  EXPECT_EQ(Version(), 1u) << "the former program can go on with it";
}

TEST_F(NvmeGoldenTest, Version1WithEncryptionTurnedOnIsLeftAsideNeverMisread) {
  CopyGolden("v1");
  UseKeys();
  auto running = Start();
  ASSERT_NE(running, nullptr);
  const auto recovered = running->Recover();
  EXPECT_TRUE(recovered.pages.empty());
  EXPECT_EQ(recovered.metadata.size(), 1u);
  EXPECT_EQ(running->tier().recovery().unreadable, 2u);
  running.reset();
  EXPECT_EQ(Version(), 2u) << "former programs refuse it now";
}

TEST_F(NvmeGoldenTest, Version2IsRead) {
  CopyGolden("v2");
  ASSERT_EQ(Version(), 2u);
  UseKeys();
  ExpectGoldenContent();
  ExpectGoldenContent();
}

TEST_F(NvmeGoldenTest, Version2WithoutItsKeyIsLeftAsideNeverMisread) {
  CopyGolden("v2");
  auto running = Start();
  ASSERT_NE(running, nullptr);
  EXPECT_TRUE(running->Recover().pages.empty());
  EXPECT_EQ(running->tier().recovery().unreadable, 2u);
}

TEST_F(NvmeGoldenTest, DISABLED_MakesADirectory) {
  UseKeys();
  {
    auto running = Start();
    ASSERT_NE(running, nullptr);
    ASSERT_EQ(running->SaveMetadata("key", "value"), absl::OkStatus());
    for (uint32_t number = 0; number < 3; ++number) {
      const auto page = running->Reserve(kGoldenPool);
      ASSERT_TRUE(page.ok()) << page.status();
      ASSERT_EQ(running->Write(*page, TestPage(number, kGoldenShape)), absl::OkStatus());
      if (number == 1) running->Release(*page);
    }
  }
  const std::string to = "/var/tmp/nvme_golden";
  fs::remove_all(to);
  fs::copy(dir_, to, fs::copy_options::recursive);
  std::printf("made %s\n", to.c_str());
}

}  // namespace
}  // namespace kvstore::tiers
