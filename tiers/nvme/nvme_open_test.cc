// What happens when the directory is not what it should be: a clear error, and nothing touched.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/nvme_test_support.h"
#include "tiers/nvme/superblock.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
absl::Status OpenIn(const std::string& dir) {
  return RunningTier::Start(TestOptions(dir)).status();
}
std::string Message(const absl::Status& status) { return std::string(status.message()); }

class NvmeOpenTest : public testing::Test {
 protected:
  TestDirectory root_;
  const std::string dir_ = root_.file("nvme");
};

TEST_F(NvmeOpenTest, ANewDirectoryIsPrivate) {
  auto running = RunningTier::Start(TestOptions(dir_));
  ASSERT_TRUE(running.ok()) << running.status();
  struct stat found {};
  for (const auto& [name, mode] : std::map<std::string, mode_t>{{"", 0700},
                                                                {"/lock", 0600},
                                                                {"/pages", 0600},
                                                                {"/superblock", 0600},
                                                                {"/index", 0700}}) {
    ASSERT_EQ(stat((dir_ + name).c_str(), &found), 0) << name;
    EXPECT_EQ(found.st_mode & 07777, mode) << name;
  }
  ASSERT_EQ(stat((dir_ + "/pages").c_str(), &found), 0);
  const NvmeLayout& layout = (*running)->tier().layout();
  EXPECT_EQ(static_cast<uint64_t>(found.st_size), layout.extents_per_dir * layout.extent_bytes);
  EXPECT_GE(static_cast<uint64_t>(found.st_blocks) * 512, static_cast<uint64_t>(found.st_size));
}

TEST_F(NvmeOpenTest, ASecondOwnerIsRefusedAndToldTheFirst) {
  auto first = RunningTier::Start(TestOptions(dir_));
  ASSERT_TRUE(first.ok());
  const absl::Status status = OpenIn(dir_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(absl::StrCat("in use by process ", getpid())));
  first->reset();
  EXPECT_EQ(OpenIn(dir_), absl::OkStatus());
}

TEST_F(NvmeOpenTest, ANewerFormatIsRefusedAndLeftUntouched) {
  { ASSERT_TRUE((*RunningTier::Start(TestOptions(dir_)))->Store(TestPage(1, kTestShape)).ok()); }
  const std::string ours = ReadFile(dir_ + "/superblock");
  std::string newer = ours;
  newer[8] = 3;  // version
  WriteFile(dir_ + "/superblock", newer);
  const auto pages_time = std::filesystem::last_write_time(dir_ + "/pages");
  const auto lock_time = std::filesystem::last_write_time(dir_ + "/lock");
  const absl::Status status = OpenIn(dir_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("format version 3"));
  EXPECT_THAT(Message(status), HasSubstr("newer"));
  EXPECT_EQ(ReadFile(dir_ + "/superblock"), newer);
  EXPECT_EQ(std::filesystem::last_write_time(dir_ + "/pages"), pages_time);
  EXPECT_EQ(std::filesystem::last_write_time(dir_ + "/lock"), lock_time);
  WriteFile(dir_ + "/superblock", ours);
  auto again = RunningTier::Start(TestOptions(dir_));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->Recover().pages.size(), 1u);
}

TEST_F(NvmeOpenTest, EveryDamagedByteOfTheSuperblockIsRefused) {
  { ASSERT_EQ(OpenIn(dir_), absl::OkStatus()); }
  const std::string ours = ReadFile(dir_ + "/superblock");
  for (size_t at = 0; at < 64; ++at) {
    std::string damaged = ours;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_FALSE(DecodeSuperblock(std::as_bytes(std::span(damaged))).ok()) << at;
  }
  std::string damaged = ours;
  damaged[40] ^= 1;
  WriteFile(dir_ + "/superblock", damaged);
  EXPECT_TRUE(absl::IsDataLoss(OpenIn(dir_)));
  EXPECT_EQ(ReadFile(dir_ + "/superblock"), damaged);
  WriteFile(dir_ + "/superblock", ours.substr(0, 100));
  EXPECT_FALSE(OpenIn(dir_).ok());
}

TEST_F(NvmeOpenTest, ForeignFilesAreNotOverwritten) {
  mkdir(dir_.c_str(), 0700);
  WriteFile(dir_ + "/pages", "somebody else's");
  const absl::Status status = OpenIn(dir_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("holds pages"));
  EXPECT_EQ(ReadFile(dir_ + "/pages"), "somebody else's");
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/lock"));
}

TEST_F(NvmeOpenTest, LinksAreRefused) {
  const std::string target = root_.file("target");
  { ASSERT_EQ(OpenIn(target), absl::OkStatus()); }
  ASSERT_EQ(symlink(target.c_str(), dir_.c_str()), 0);
  const absl::Status status = OpenIn(dir_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("symbolic link"));
  // Also inside: a link in the place of a file would let whoever made it choose what is
  // overwritten.
  const std::string victim = root_.file("victim");
  WriteFile(victim, "precious");
  for (const char* name : {"/pages", "/lock", "/superblock", "/index"}) {
    std::filesystem::remove_all(target);
    { ASSERT_EQ(OpenIn(target), absl::OkStatus()); }
    std::filesystem::remove_all(target + name);
    ASSERT_EQ(symlink(victim.c_str(), (target + name).c_str()), 0);
    EXPECT_FALSE(OpenIn(target).ok()) << name;
    EXPECT_EQ(ReadFile(victim), "precious") << name;
  }
}

TEST_F(NvmeOpenTest, DirectoriesThatOthersMayWriteAreRefused) {
  for (mode_t mode : {0770, 0702, 0777}) {
    mkdir(dir_.c_str(), 0700);
    chmod(dir_.c_str(), mode);
    const absl::Status status = OpenIn(dir_);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("chmod 700"));
  }
  chmod(dir_.c_str(), 0750);
  EXPECT_EQ(OpenIn(dir_), absl::OkStatus());
}

TEST_F(NvmeOpenTest, ParentsThatOthersCanBendAreRefused) {
  const std::string parent = root_.file("parent");
  mkdir(parent.c_str(), 0700);
  for (mode_t mode : {0775, 0757, 0777}) {
    chmod(parent.c_str(), mode);
    const absl::Status status = OpenIn(parent + "/nvme");
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_FALSE(std::filesystem::exists(parent + "/nvme"));
  }
  chmod(parent.c_str(), 0755);
  EXPECT_EQ(OpenIn(parent + "/nvme"), absl::OkStatus());
  ASSERT_EQ(symlink(parent.c_str(), root_.file("link").c_str()), 0);
  EXPECT_THAT(Message(OpenIn(root_.file("link/nvme"))), HasSubstr("a symbolic link"));
  EXPECT_THAT(Message(OpenIn(parent + "/../parent/nvme")), HasSubstr(".."));
}

TEST_F(NvmeOpenTest, HardLinksAndPipesInItAreRefused) {
  const std::string victim = root_.file("victim");
  WriteFile(victim, "precious");
  chmod(victim.c_str(), 0600);
  for (const char* name : {"/pages", "/lock", "/superblock"}) {
    std::filesystem::remove_all(dir_);
    { ASSERT_EQ(OpenIn(dir_), absl::OkStatus()); }
    std::filesystem::remove(dir_ + name);
    ASSERT_EQ(link(victim.c_str(), (dir_ + name).c_str()), 0);
    EXPECT_THAT(Message(OpenIn(dir_)), HasSubstr("with one name")) << name;
    EXPECT_EQ(ReadFile(victim), "precious") << name;
    std::filesystem::remove(dir_ + name);
    ASSERT_EQ(mkfifo((dir_ + name).c_str(), 0600), 0);
    EXPECT_FALSE(OpenIn(dir_).ok()) << name;
  }
}

TEST_F(NvmeOpenTest, AnotherUsersDirectoryIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a directory away";
  mkdir(dir_.c_str(), 0700);
  ASSERT_EQ(chown(dir_.c_str(), 65534, 65534), 0);
  const absl::Status status = OpenIn(dir_);
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("owned by user 65534"));
}

TEST_F(NvmeOpenTest, AFileOrAMissingParentIsRefused) {
  WriteFile(dir_, "file");
  EXPECT_THAT(Message(OpenIn(dir_)), HasSubstr("not a directory"));
  EXPECT_THAT(Message(OpenIn(root_.file("no/such"))), HasSubstr("create its parent"));
}

TEST_F(NvmeOpenTest, ACapacityThatHoldsNothingSaysWhatIsNeeded) {
  NvmeOptions options = TestOptions(dir_);
  options.capacity_bytes = 1 << 20;
  const absl::Status status = RunningTier::Start(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  const uint64_t needed = (8 << 20) + (4 << 20) + kDirectoryBytesMax;
  EXPECT_THAT(Message(status), HasSubstr(absl::StrCat("at least ", needed, " bytes")));
  options.capacity_bytes = needed - 1;
  EXPECT_FALSE(RunningTier::Start(options).ok());
  options.capacity_bytes = needed;
  EXPECT_TRUE(RunningTier::Start(options).ok());
}

TEST_F(NvmeOpenTest, AnotherExtentSizeThanBeforeIsRefused) {
  { ASSERT_EQ(OpenIn(dir_), absl::OkStatus()); }
  NvmeOptions options = TestOptions(dir_);
  options.extent_bytes = 8 << 20;
  const absl::Status status = RunningTier::Start(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("4.00 MiB"));
}

TEST_F(NvmeOpenTest, AStartThatFoundNoSpaceLeavesNothingBehind) {
  NvmeOptions options = TestOptions(dir_);
  options.capacity_bytes = uint64_t{1} << 50;  // more than any test machine has
  options.extent_bytes = 0;
  const absl::Status status = RunningTier::Start(options).status();
  EXPECT_FALSE(status.ok());
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/superblock"));
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/pages"));
  EXPECT_EQ(OpenIn(dir_), absl::OkStatus());
}

TEST_F(NvmeOpenTest, DefaultsScaleWithTheCapacity) {
  NvmeOptions options{.dirs = {"x"}, .capacity_bytes = uint64_t{40} << 30};
  auto layout = PlanLayout(options, 0);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->extent_bytes, uint64_t{1} << 30);
  EXPECT_EQ(layout->extents_per_dir, 38u);
  EXPECT_EQ(layout->index_bytes, (uint64_t{40} << 30) / 32);
  options.capacity_bytes = uint64_t{1} << 30;
  EXPECT_EQ(PlanLayout(options, 0)->extent_bytes, uint64_t{32} << 20);
}

TEST_F(NvmeOpenTest, BadOptionsNameTheField) {
  const auto message = [](NvmeOptions options) { return Message(options.Validate()); };
  EXPECT_THAT(message({}), HasSubstr("0 directories"));
  EXPECT_THAT(message({.dirs = {"a", "a"}}), HasSubstr("given twice"));
  EXPECT_THAT(message({.dirs = {"a"}, .extent_bytes = 5000}), HasSubstr("extent size"));
  EXPECT_THAT(message({.dirs = {"a"}, .index_bytes = 5000}), HasSubstr("index size"));
  EXPECT_THAT(message({.dirs = {"a"}, .queue_depth = 0}), HasSubstr("queue_depth"));
}

}  // namespace
}  // namespace kvstore::tiers
