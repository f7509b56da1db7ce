#include "kvstore/base/log.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

TEST(Log, OneEventIsOneLineWhateverTheValueHolds) {
  const std::string line =
      FormatLogLine(LogFormat::kText, "opened", {{"name", "a\nerror forged line"}, {"slab", 7}});
  EXPECT_EQ(line, "opened name=\"a\\u000aerror forged line\" slab=7");
}

TEST(Log, JsonValuesAreEscaped) {
  const std::string line = FormatLogLine(LogFormat::kJson, "opened", {{"name", "q\"b\\s\x01"}});
  EXPECT_EQ(line, R"("event":"opened","name":"q\"b\\s\u0001")");
}

TEST(Log, BracesInValuesAreNotFormatDirectives) {
  ConfigureLog(LogLevel::kInfo, LogFormat::kText);
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "opened {} {0}", {{"name", "{}"}});
  EXPECT_NE(testing::internal::GetCapturedStderr().find("info opened {} {0} name={}"),
            std::string::npos);
}

TEST(Log, LevelsBelowTheSetOneAreDropped) {
  ConfigureLog(LogLevel::kWarning, LogFormat::kText);
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "not seen");
  Log(LogLevel::kError, "seen");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("not seen"), std::string::npos);
  EXPECT_NE(text.find("error seen"), std::string::npos);
}

TEST(Log, NamesOfLevelsAndFormatsRoundTripAndOthersAreRefused) {
  for (LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    EXPECT_EQ(*ParseLogLevel(LogLevelName(level)), level);
  }
  EXPECT_EQ(*ParseLogFormat("json"), LogFormat::kJson);
  EXPECT_FALSE(ParseLogLevel("loud").ok());
  EXPECT_FALSE(ParseLogFormat("xml").ok());
}

}  // namespace
}  // namespace kvstore
