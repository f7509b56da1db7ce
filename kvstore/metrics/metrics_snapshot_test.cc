#include "kvstore/metrics/metrics_snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kvstore::metrics {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MetricsSnapshot Some() {
  MetricsSnapshot snapshot{.version = "1.2.3", .commit = "abc", .uptime = absl::Seconds(5)};
  store::TierRow dram{.kind = tiers::TierKind::kDram};
  dram.stats.used_bytes = 4096;
  dram.counters.hit_pages = 7;
  store::TierRow nvme{.kind = tiers::TierKind::kNvme};
  nvme.counters.verified_pages = 10;
  nvme.counters.differing_pages = 2;
  nvme.counters.unreadable_pages = 1;
  nvme.counters.deadline_misses = 3;
  snapshot.store.tiers = {dram, nvme};
  return snapshot;
}

TEST(RenderMetrics, HasTheProofCountersByTierAndReason) {
  const std::string text = RenderMetrics(Some());
  EXPECT_THAT(text, HasSubstr("kvstore_store_verify_total{tier=\"nvme\"} 13\n"));
  EXPECT_THAT(text,
              HasSubstr("kvstore_store_verify_fail_total{tier=\"nvme\",reason=\"differs\"} 2\n"));
  EXPECT_THAT(
      text, HasSubstr("kvstore_store_verify_fail_total{tier=\"nvme\",reason=\"unreadable\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("kvstore_store_deadline_miss_total{tier=\"nvme\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("kvstore_tiers_hit_pages_total{tier=\"dram\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("kvstore_daemon_build_info{version=\"1.2.3\",commit=\"abc\"} 1\n"));
}

TEST(RenderMetrics, TenantLabelsAreBoundedAndLoseNoByte) {
  MetricsSnapshot snapshot = Some();
  for (uint64_t i = 1; i <= 1000; ++i)
    snapshot.tenants.push_back(
        {.name = "t" + std::to_string(i),
         .tiers = {{.kind = tiers::TierKind::kDram, .quota_bytes = 2 * i, .used_bytes = i},
                   {.kind = tiers::TierKind::kNvme}},
         .leased_blocks = 3});
  const std::string text = RenderMetrics(snapshot);
  size_t labels = 0;
  for (size_t at = 0; (at = text.find("kvstore_store_tenant_bytes{", at)) != std::string::npos;
       ++at)
    ++labels;
  EXPECT_EQ(labels, (kTenantLabelsMax + 1) * snapshot.store.tiers.size());
  EXPECT_THAT(text, HasSubstr("{tenant=\"t1000\",tier=\"dram\"} 1000\n"));
  EXPECT_THAT(text, Not(HasSubstr("tenant=\"t1\"")));
  // 1 + ... + 968, those that are not among the 32 largest.
  EXPECT_THAT(text, HasSubstr("tenant_bytes{tenant=\"_other\",tier=\"dram\"} 468996\n"));
  EXPECT_THAT(text, HasSubstr("tenant_quota_bytes{tenant=\"t1000\",tier=\"dram\"} 2000\n"));
  EXPECT_THAT(text, HasSubstr("tenant_quota_bytes{tenant=\"_other\",tier=\"dram\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("tenant_pins{tenant=\"t1000\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("tenant_pins{tenant=\"_other\"} 2904\n"));
}

TEST(RenderHealth, TellsWhatStateTheDaemonIsIn) {
  MetricsSnapshot snapshot = Some();
  EXPECT_EQ(RenderHealth(snapshot).http_code, 200);
  EXPECT_EQ(nlohmann::json::parse(RenderHealth(snapshot).json)["health"], "serving");
  snapshot.store.tiers[1].state = tiers::TierState::kReadOnly;
  HealthAnswer answer = RenderHealth(snapshot);
  EXPECT_EQ(answer.http_code, 200) << "a full disk is no reason to restart";
  EXPECT_EQ(nlohmann::json::parse(answer.json)["health"], "degraded");
  EXPECT_EQ(nlohmann::json::parse(answer.json)["degraded"][0], "tier nvme is read-only");
  snapshot.store.is_draining = true;
  EXPECT_EQ(RenderHealth(snapshot).http_code, 503);
  snapshot.store.tiers[0].state = tiers::TierState::kFailed;
  EXPECT_THAT(RenderHealth(snapshot).json, HasSubstr("failed"));
  answer = RenderHealth(absl::DeadlineExceededError("x"));
  EXPECT_EQ(answer.http_code, 503);
  EXPECT_THAT(answer.json, HasSubstr("unresponsive"));
}

}  // namespace
}  // namespace kvstore::metrics
