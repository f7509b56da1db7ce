#include "kvstore/base/trusted_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace kvstore {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class TrustedPathTest : public testing::Test {
 protected:
  TrustedPathTest() {
    char name[] = "/var/tmp/trusted_path.XXXXXX";
    root_ = mkdtemp(name);
    fs::create_directories(root_ + "/a/b");
    chmod((root_ + "/a").c_str(), 0755);
    chmod((root_ + "/a/b").c_str(), 0755);
    Write(root_ + "/a/b/secret", 0400);
  }
  ~TrustedPathTest() override { fs::remove_all(root_); }
  static void Write(const std::string& path, mode_t mode) {
    std::ofstream(path) << "content";
    chmod(path.c_str(), mode);
  }
  static std::string Refusal(const std::string& path) {
    const auto read = ReadSecretFile(path, 100);
    return read.ok() ? "" : std::string(read.status().message());
  }
  std::string root_;
};

TEST_F(TrustedPathTest, AFileOfOursIsRead) {
  EXPECT_EQ(*ReadSecretFile(root_ + "/a/b/secret", 100), "content");
  EXPECT_EQ(*ReadSecretFile(root_ + "//a/./b/secret", 7), "content");
  chmod((root_ + "/a/b/secret").c_str(), 0600);
  EXPECT_TRUE(ReadSecretFile(root_ + "/a/b/secret", 100).ok());
}

TEST_F(TrustedPathTest, LinksAreRefusedWhereverTheyAre) {
  fs::create_symlink(root_ + "/a/b/secret", root_ + "/a/link");
  EXPECT_THAT(Refusal(root_ + "/a/link"), HasSubstr("symbolic link"));
  fs::create_symlink(root_ + "/a", root_ + "/c");
  EXPECT_THAT(Refusal(root_ + "/c/b/secret"), HasSubstr("/c: a symbolic link"));
  EXPECT_FALSE(OpenTrustedParent(root_ + "/c/b").ok());
  fs::create_hard_link(root_ + "/a/b/secret", root_ + "/a/other");
  EXPECT_THAT(Refusal(root_ + "/a/other"), HasSubstr("2 names"));
  EXPECT_THAT(Refusal(root_ + "/a/b/secret"), HasSubstr("2 names"));
}

TEST_F(TrustedPathTest, DotsAndRelativePathsAreRefused) {
  EXPECT_THAT(Refusal(root_ + "/a/../a/b/secret"), HasSubstr(".."));
  EXPECT_THAT(Refusal("a/b"), HasSubstr("absolute"));
  EXPECT_THAT(Refusal("/"), HasSubstr("not a path"));
}

TEST_F(TrustedPathTest, AParentThatOthersCanWriteToIsRefusedUnlessItIsSticky) {
  for (const mode_t mode : {0775, 0757, 0777}) {
    chmod((root_ + "/a").c_str(), mode);
    EXPECT_THAT(Refusal(root_ + "/a/b/secret"), HasSubstr("/a: writable by group or others"));
    EXPECT_TRUE(absl::IsPermissionDenied(OpenTrustedParent(root_ + "/a/b").status()));
  }
  chmod((root_ + "/a").c_str(), 01777);
  EXPECT_EQ(Refusal(root_ + "/a/b/secret"), "");
}

TEST_F(TrustedPathTest, AFileThatOthersCanReadIsRefused) {
  for (const mode_t mode : {0440, 0404, 0640, 0620, 0602, 0444}) {
    chmod((root_ + "/a/b/secret").c_str(), mode);
    EXPECT_THAT(Refusal(root_ + "/a/b/secret"), HasSubstr("chmod 400")) << std::oct << mode;
  }
}

TEST_F(TrustedPathTest, OtherOwnersAreRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give files away";
  ASSERT_EQ(chown((root_ + "/a/b/secret").c_str(), 65534, 65534), 0);
  EXPECT_THAT(Refusal(root_ + "/a/b/secret"), HasSubstr("owned by user 65534"));
  ASSERT_EQ(chown((root_ + "/a/b/secret").c_str(), 0, 0), 0);
  ASSERT_EQ(chown((root_ + "/a").c_str(), 65534, 65534), 0);
  EXPECT_THAT(Refusal(root_ + "/a/b/secret"), HasSubstr("/a: owned by user 65534"));
}

TEST_F(TrustedPathTest, WhatIsNoFileOrTooLargeIsRefused) {
  ASSERT_EQ(mkfifo((root_ + "/a/pipe").c_str(), 0400), 0);
  EXPECT_THAT(Refusal(root_ + "/a/pipe"), HasSubstr("not a regular file"));
  EXPECT_THAT(Refusal(root_ + "/a/b"), HasSubstr("not a regular file"));
  EXPECT_THAT(Refusal(root_ + "/a/none"), HasSubstr("No such file"));
  EXPECT_FALSE(ReadSecretFile(root_ + "/a/b/secret", 6).ok());
}

}  // namespace
}  // namespace kvstore
