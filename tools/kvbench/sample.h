// Repeated measurements of one quantity, and what is reported of them.
#pragma once

#include <cstddef>
#include <vector>

namespace kvstore::bench {

// Confined to one thread. Order statistics are those of the values added so far.
// Requires for each of them: at least one value.
class Sample {
 public:
  Sample() = default;
  explicit Sample(std::vector<double> values) : values_(std::move(values)) {}

  void Add(double value) { values_.push_back(value); }
  size_t size() const { return values_.size(); }

  double Min() const;
  double Max() const;
  // Of an even count: the mean of the two in the middle.
  double Median() const;
  // The smallest value that is not below a share `q` of all, 0 < q <= 1 (nearest rank).
  double Percentile(double q) const;

 private:
  std::vector<double> values_;
};

}  // namespace kvstore::bench
