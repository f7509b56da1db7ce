#include "tiers/breaker.h"

#include <gtest/gtest.h>

namespace kvstore::tiers {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

Breaker Open() {
  Breaker breaker({.failures_max = 3, .probe_after = absl::Seconds(1)});
  for (int i = 0; i < 3; ++i) breaker.RecordFailure(kStart, "gone");
  return breaker;
}

TEST(Breaker, OpensWhenFailuresOutnumberSuccesses) {
  Breaker breaker({.failures_max = 3});
  EXPECT_FALSE(breaker.RecordFailure(kStart, "a"));
  EXPECT_FALSE(breaker.RecordFailure(kStart, "b"));
  breaker.RecordSuccess();
  EXPECT_FALSE(breaker.RecordFailure(kStart, "c"));
  EXPECT_TRUE(breaker.is_closed());
  EXPECT_TRUE(breaker.RecordFailure(kStart, "d"));
  EXPECT_EQ(breaker.state(), BreakerState::kOpen);
  EXPECT_EQ(breaker.reason(), "d");
  EXPECT_EQ(breaker.probe_at(), kStart + absl::Seconds(1));
}

TEST(Breaker, SingleFailuresAmongSuccessesNeverOpenIt) {
  Breaker breaker({.failures_max = 2});
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(breaker.RecordFailure(kStart, "bad sector"));
    breaker.RecordSuccess();
  }
  EXPECT_TRUE(breaker.is_closed());
}

TEST(Breaker, SuccessesBeforeAnOutageDoNotDelayIt) {
  Breaker breaker({.failures_max = 2});
  for (int i = 0; i < 1000; ++i) breaker.RecordSuccess();
  breaker.RecordFailure(kStart, "gone");
  EXPECT_TRUE(breaker.RecordFailure(kStart, "gone"));
}

TEST(Breaker, OneGoodProbeClosesItAndFormerFailuresAreForgotten) {
  Breaker breaker = Open();
  breaker.RecordSuccess();  // of an operation from before: only a probe closes it
  EXPECT_EQ(breaker.state(), BreakerState::kOpen);
  breaker.BeginProbe();
  EXPECT_EQ(breaker.state(), BreakerState::kHalfOpen);
  breaker.RecordSuccess();
  EXPECT_TRUE(breaker.is_closed());
  EXPECT_FALSE(breaker.RecordFailure(kStart, "one"));
  EXPECT_FALSE(breaker.RecordFailure(kStart, "two"));
  EXPECT_EQ(breaker.openings(), 1u);
}

TEST(Breaker, AFailedProbeOpensItAgainAndItIsProbedLater) {
  Breaker breaker = Open();
  breaker.BeginProbe();
  const absl::Time later = kStart + absl::Seconds(5);
  EXPECT_TRUE(breaker.RecordFailure(later, "still gone"));
  EXPECT_EQ(breaker.state(), BreakerState::kOpen);
  EXPECT_EQ(breaker.probe_at(), later + absl::Seconds(1));
  EXPECT_EQ(breaker.openings(), 1u) << "one outage";
}

TEST(Breaker, TripOpensAtOnceAndOnce) {
  Breaker breaker({});
  EXPECT_TRUE(breaker.Trip(kStart, "no answer"));
  EXPECT_FALSE(breaker.Trip(kStart, "no answer"));
  EXPECT_EQ(breaker.openings(), 1u);
}

}  // namespace
}  // namespace kvstore::tiers
