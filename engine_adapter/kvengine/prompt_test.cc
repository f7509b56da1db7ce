#include "engine_adapter/kvengine/prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvstore::engine {
namespace {

TEST(ParseTokenIds, TakesAnyWhitespace) {
  const auto ids = ParseTokenIds(" 1\n22\t333\r\n4294967295 ");
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, testing::ElementsAre(1, 22, 333, 4294967295u));
  EXPECT_TRUE(ParseTokenIds(" \n")->empty());
}

TEST(ParseTokenIds, NamesTheWordThatIsNoId) {
  for (const char* text : {"1 2 x3", "1 2 -3", "1 2 4294967296", "1 2 3.5"}) {
    const absl::Status status = ParseTokenIds(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("token 3"));
  }
}

TEST(ReadPromptFile, AMissingFileIsNamed) {
  const absl::Status status = ReadPromptFile("/nonexistent/prompt.txt").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/nonexistent/prompt.txt"));
}

}  // namespace
}  // namespace kvstore::engine
