#include "kvstore/policy/policies.h"

#include <gtest/gtest.h>

namespace kvstore::policy {
namespace {

TEST(Policies, WriteModeNamesRoundTrip) {
  for (const char* name : {"through", "back"})
    EXPECT_EQ(WriteModeName(*ParseWriteMode(name)), name);
}

TEST(Policies, UnknownWriteModeNamesTheValidOnes) {
  const absl::Status status = ParseWriteMode("sideways").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("through, back"), absl::string_view::npos);
}

TEST(Policies, WatermarksMustBeOrdered) {
  EXPECT_TRUE(PolicyOptions{}.Validate().ok());
  EXPECT_FALSE((PolicyOptions{.high_watermark = 0.5, .low_watermark = 0.6}).Validate().ok());
  EXPECT_FALSE((PolicyOptions{.high_watermark = 1.0, .low_watermark = 0.6}).Validate().ok());
}

}  // namespace
}  // namespace kvstore::policy
