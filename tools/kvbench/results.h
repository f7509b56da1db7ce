// Shapes of figures that several suites share.
#pragma once

#include <string>

#include "tools/kvbench/report.h"

namespace kvstore::bench {

inline constexpr double kGigabyte = 1e9;

// A rate beside the median of its ceiling, both in GB/s.
inline Result RateResult(std::string name, const Sample& rate, const Sample& ceiling,
                         std::string ceiling_name) {
  Result result = MakeResult(std::move(name), "GB/s", Better::kHigher, rate);
  result.ceiling = Ceiling{.value = ceiling.Median(), .name = std::move(ceiling_name)};
  return result;
}
inline Budget RatioBudget(std::string id, double limit) {
  return {.id = std::move(id), .on = Budget::On::kRatio, .limit = limit};
}
inline Budget ValueBudget(std::string id, double limit) {
  return {.id = std::move(id), .on = Budget::On::kValue, .limit = limit};
}

}  // namespace kvstore::bench
