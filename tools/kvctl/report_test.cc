#include "tools/kvctl/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kvstore::kvctl {
namespace {

TEST(Table, AlignsColumnsAndLeavesNoSpaceAtTheEnd) {
  Table table({{"NAME"}, {"PAGES", Align::kRight}, {"STATE"}});
  table.Add({"gpu", "7", "serving"});
  table.Add({"a longer name", "1,024", ""});
  EXPECT_EQ(table.Render(),
            "NAME           PAGES  STATE\n"
            "gpu                7  serving\n"
            "a longer name  1,024\n");
}

TEST(Printable, ControlCharactersDoNotReachATerminal) {
  EXPECT_EQ(Printable("a\x1b[31mb\n\x7f"), "a?[31mb??");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m"),
            "??31m");  // U+009B, the one-character escape
}

TEST(Printable, Utf8PassesAndOtherBytesDoNot) {
  EXPECT_EQ(Printable("größe €"), "größe €");
  EXPECT_EQ(Printable("\xff\xc3"), "??");
  EXPECT_EQ(Printable("\xc0\xaf"), "??");  // overlong
}

TEST(Format, CountsAndTimes) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatSeconds(0.25), "0.2s");
  EXPECT_EQ(FormatSeconds(192), "3m 12s");
  EXPECT_EQ(FormatSeconds(7260), "2h 1m");
  EXPECT_EQ(FormatSeconds(200000), "2d 7h");
}

TEST(PrintError, JsonGoesToStdoutWithCodeAndMessage) {
  testing::internal::CaptureStdout();
  const ExitCode code = PrintError(absl::NotFoundError("no \xff such"), true);
  const nlohmann::json out = nlohmann::json::parse(testing::internal::GetCapturedStdout());
  EXPECT_EQ(code, ExitCode::kFailed);
  EXPECT_EQ(out["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(out["error"]["message"], "no \xef\xbf\xbd such");
}

TEST(PrintError, InputThatCanNeverWorkIsWrongUsage) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(PrintError(absl::InvalidArgumentError("bad"), false), ExitCode::kUsage);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "kvctl: bad (INVALID_ARGUMENT)\n");
}

}  // namespace
}  // namespace kvstore::kvctl
