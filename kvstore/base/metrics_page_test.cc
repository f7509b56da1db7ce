#include "kvstore/base/metrics_page.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

TEST(MetricsPage, AFamilyHasHelpTypeAndItsSamples) {
  MetricsPage page;
  page.Family("kvstore_tiers_used_bytes", MetricType::kGauge, "Bytes in use.");
  page.Sample({{"tier", "dram"}}, uint64_t{42});
  page.Sample({}, 0.25);
  EXPECT_EQ(std::move(page).Take(),
            "# HELP kvstore_tiers_used_bytes Bytes in use.\n"
            "# TYPE kvstore_tiers_used_bytes gauge\n"
            "kvstore_tiers_used_bytes{tier=\"dram\"} 42\n"
            "kvstore_tiers_used_bytes 0.25\n");
}

TEST(MetricsPage, LabelValuesCannotBreakOut) {
  MetricsPage page;
  page.Family("x", MetricType::kCounter, "h");
  page.Sample({{"tenant", "a\"} 1\nb\\"}}, uint64_t{1});
  EXPECT_EQ(std::move(page).Take(),
            "# HELP x h\n# TYPE x counter\nx{tenant=\"a\\\"} 1\\nb\\\\\"} 1\n");
}

TEST(MetricsPage, HistogramBucketsAreCumulativeAndInSeconds) {
  LatencyHistogram h;
  h.Record(absl::Microseconds(15));
  h.Record(absl::Microseconds(15));
  h.Record(absl::Seconds(60));
  MetricsPage page;
  page.Family("t", MetricType::kHistogram, "h");
  page.Histogram({{"tier", "nvme"}}, h.snapshot());
  const std::string text = std::move(page).Take();
  EXPECT_NE(text.find("t_bucket{tier=\"nvme\",le=\"1e-05\"} 0\n"), std::string::npos) << text;
  EXPECT_NE(text.find("t_bucket{tier=\"nvme\",le=\"2e-05\"} 2\n"), std::string::npos) << text;
  EXPECT_NE(text.find("t_bucket{tier=\"nvme\",le=\"10\"} 2\n"), std::string::npos) << text;
  EXPECT_NE(text.find("t_bucket{tier=\"nvme\",le=\"+Inf\"} 3\n"), std::string::npos) << text;
  EXPECT_NE(text.find("t_sum{tier=\"nvme\"} 60.00003\n"), std::string::npos) << text;
  EXPECT_NE(text.find("t_count{tier=\"nvme\"} 3\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace kvstore
