#include "tools/kvbench/sample.h"

#include <algorithm>
#include <cmath>

namespace kvstore::bench {

double Sample::Min() const { return *std::ranges::min_element(values_); }
double Sample::Max() const { return *std::ranges::max_element(values_); }

double Sample::Median() const {
  std::vector<double> sorted = values_;
  std::ranges::sort(sorted);
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

double Sample::Percentile(double q) const {
  std::vector<double> sorted = values_;
  std::ranges::sort(sorted);
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

}  // namespace kvstore::bench
