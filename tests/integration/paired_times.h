// Times of one kind of request in pairs of phases, before and under a fault, for tests that promise
// a ratio. Robust where other programs run: what is judged is the median of the rounds' ratios.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvstore::testing {

// The p99 of `requests` calls of `once`, with a pause of 2 ms between them.
template <class Once>
absl::Duration P99(int requests, Once once) {
  std::vector<absl::Duration> times;
  for (int i = 0; i < requests; ++i) {
    const absl::Time start = absl::Now();
    once();
    times.push_back(absl::Now() - start);
    absl::SleepFor(absl::Milliseconds(2));
  }
  std::ranges::sort(times);
  return times[times.size() * 99 / 100];
}

class PairedTimes {
 public:
  // `strict_ratio`: the goal, held to where nothing else runs (KVSTORE_STRICT=1).
  PairedTimes(std::string name, double strict_ratio)
      : name_(std::move(name)), strict_ratio_(strict_ratio) {}
  void Add(absl::Duration usual, absl::Duration faulty) {
    std::printf("%s: p99 %.3f ms, under the fault %.3f ms: %.2f times\n", name_.c_str(),
                absl::ToDoubleMilliseconds(usual), absl::ToDoubleMilliseconds(faulty),
                absl::FDivDuration(faulty, usual));
    ratios_.push_back(absl::FDivDuration(faulty, usual));
    times_.push_back(faulty);
  }
  // `always_good`: elsewhere a wake-up alone may take some ticks of 4 ms; only what is above this
  // and far above the goal fails.
  void Judge(absl::Duration always_good) {
    std::ranges::sort(ratios_);
    std::ranges::sort(times_);
    const double ratio = ratios_[ratios_.size() / 2];
    const absl::Duration time = times_[times_.size() / 2];
    std::printf("%s: median %.2f times, goal %.1f\n", name_.c_str(), ratio, strict_ratio_);
    const bool is_strict = getenv("KVSTORE_STRICT") != nullptr;
    EXPECT_TRUE(!is_strict || ratio <= strict_ratio_) << name_ << ": " << ratio << " times";
    EXPECT_TRUE(ratio <= 4 || time <= always_good) << name_ << ": " << ratio << " times, " << time;
  }

 private:
  const std::string name_;
  const double strict_ratio_;
  std::vector<double> ratios_;
  std::vector<absl::Duration> times_;
};

}  // namespace kvstore::testing
