#include "kvstore/base/units.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

TEST(ParseBytes, ReadsBinaryUnitsAndPercentages) {
  EXPECT_EQ(*ParseBytes("512MiB"), 512u << 20);
  EXPECT_EQ(*ParseBytes("1.5KiB"), 1536u);
  EXPECT_EQ(*ParseBytes("0B"), 0u);
  EXPECT_EQ(*ParseBytes("25%", 1000), 250u);
}

TEST(ParseBytes, RefusesWhatIsNotASize) {
  for (const char* text : {"", "12", "MiB", "-1MiB", "1MB", "1 MiB", "101%", "nanMiB", "1e400GiB",
                           "99999999TiB", "5%x"}) {
    EXPECT_FALSE(ParseBytes(text, 1000).ok()) << text;
  }
  EXPECT_FALSE(ParseBytes("25%").ok()) << "no whole to take a share of";
}

TEST(ParseDuration, ReadsUnitsAndRefusesOthers) {
  EXPECT_EQ(*ParseDuration("200ms"), absl::Milliseconds(200));
  EXPECT_EQ(*ParseDuration("2s"), absl::Seconds(2));
  EXPECT_EQ(*ParseDuration("10m"), absl::Minutes(10));
  for (const char* text : {"", "5", "5d", "-1s", "s"})
    EXPECT_FALSE(ParseDuration(text).ok()) << text;
}

TEST(FormatBytes, HasThreeDigits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(360 * 1024), "360 KiB");
  EXPECT_EQ(FormatBytes(1536), "1.50 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{40} << 30), "40.0 GiB");
}

}  // namespace
}  // namespace kvstore
