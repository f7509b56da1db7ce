#include "tools/kvctl/page_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace kvstore::kvctl {
namespace {

using ::testing::HasSubstr;

class PageFile : public testing::Test {
 protected:
  PageFile()
      : folder_(testing::TempDir() + "page_file_" +
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  static std::string Content(const std::string& path) {
    std::stringstream out;
    out << std::ifstream(path, std::ios::binary).rdbuf();
    return out.str();
  }
  size_t NumFiles() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  std::string folder_;
};

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

TEST_F(PageFile, SourceReadsPieceByPiece) {
  absl::StatusOr<PageSource> source = PageSource::Open(Write("data", "abcdef"), 6);
  ASSERT_TRUE(source.ok());
  std::array<std::byte, 3> page;
  ASSERT_TRUE(source->Read(page).ok());
  EXPECT_EQ(static_cast<char>(page[2]), 'c');
  ASSERT_TRUE(source->Read(page).ok());
  EXPECT_EQ(static_cast<char>(page[2]), 'f');
  EXPECT_TRUE(source->ExpectEnd().ok());
}

TEST_F(PageFile, SourceRefusesAFileOfAnotherSize) {
  for (const uint64_t size : {5u, 7u}) {
    const absl::Status status = PageSource::Open(Write("data", "abcdef"), size).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(status.ToString(), HasSubstr("has 6 bytes"));
  }
}

TEST_F(PageFile, SourceSaysWhenAPipeIsShortOrLong) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  // Open for both directions, so that nothing waits for the other side.
  std::fstream writer(Path("pipe"), std::ios::in | std::ios::out | std::ios::binary);
  writer << "abcd" << std::flush;
  absl::StatusOr<PageSource> source = PageSource::Open(Path("pipe"), 3);
  ASSERT_TRUE(source.ok());
  std::array<std::byte, 3> page;
  ASSERT_TRUE(source->Read(page).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(source->ExpectEnd()));
  writer << "xy" << std::flush;
  writer.close();
  EXPECT_TRUE(absl::IsInvalidArgument(source->Read(page)));
}

TEST_F(PageFile, SourceRefusesAFolderAndAMissingFile) {
  EXPECT_TRUE(absl::IsInvalidArgument(PageSource::Open(folder_, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PageSource::Open(Path("none"), 0).status()));
}

TEST_F(PageFile, SinkReplacesTheFileOnlyWhenFinished) {
  Write("out", "old");
  absl::StatusOr<PageSink> sink = PageSink::Create(Path("out"));
  ASSERT_TRUE(sink.ok());
  ASSERT_TRUE(sink->Write(Bytes("new")).ok());
  EXPECT_EQ(Content(Path("out")), "old");
  ASSERT_TRUE(sink->Finish().ok());
  EXPECT_EQ(Content(Path("out")), "new");
  EXPECT_EQ(NumFiles(), 1u);
}

TEST_F(PageFile, SinkThatIsNotFinishedLeavesNothing) {
  {
    absl::StatusOr<PageSink> sink = PageSink::Create(Path("out"));
    ASSERT_TRUE(sink.ok());
    ASSERT_TRUE(sink->Write(Bytes("new")).ok());
  }
  EXPECT_EQ(NumFiles(), 0u);
}

TEST_F(PageFile, SinkKeepsTheModeOfTheFileThatItReplaces) {
  Write("out", "old");
  chmod(Path("out").c_str(), 0640);
  absl::StatusOr<PageSink> sink = PageSink::Create(Path("out"));
  ASSERT_TRUE(sink.ok());
  ASSERT_TRUE(sink->Finish().ok());
  struct stat status {};
  stat(Path("out").c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST_F(PageFile, SinkWritesThroughALinkToTheFileThatItNames) {
  Write("file", "old");
  std::filesystem::create_symlink(Path("file"), Path("link"));
  absl::StatusOr<PageSink> sink = PageSink::Create(Path("link"));
  ASSERT_TRUE(sink.ok());
  ASSERT_TRUE(sink->Write(Bytes("new")).ok());
  ASSERT_TRUE(sink->Finish().ok());
  EXPECT_TRUE(std::filesystem::is_symlink(Path("link")));
  EXPECT_EQ(Content(Path("file")), "new");
}

TEST_F(PageFile, SinkWritesADeviceInPlace) {
  absl::StatusOr<PageSink> sink = PageSink::Create("/dev/null");
  ASSERT_TRUE(sink.ok());
  ASSERT_TRUE(sink->Write(Bytes("new")).ok());
  ASSERT_TRUE(sink->Finish().ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(PageFile, SinkSaysThatThereIsNoSpace) {
  absl::StatusOr<PageSink> sink = PageSink::Create("/dev/full");
  ASSERT_TRUE(sink.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(sink->Write(Bytes("new"))));
}

TEST_F(PageFile, SinkInAFolderThatIsNotThereIsInvalid) {
  EXPECT_TRUE(absl::IsInvalidArgument(PageSink::Create(Path("none/out")).status()));
}

}  // namespace
}  // namespace kvstore::kvctl
