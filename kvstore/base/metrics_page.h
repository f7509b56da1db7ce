// A page in Prometheus' text exposition format, version 0.0.4.
//
//   MetricsPage page;
//   page.Family("kvstore_tiers_used_bytes", MetricType::kGauge, "Bytes in slots that are in use.");
//   page.Sample({{"tier", "dram"}}, used);
//   std::string text = std::move(page).Take();
//
// Samples belong to the family before them. Not thread-safe.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "kvstore/base/latency_histogram.h"

namespace kvstore {

enum class MetricType { kCounter, kGauge, kHistogram };

class MetricsPage {
 public:
  using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;

  // Names end in "_total" for counters; histograms are in seconds.
  void Family(std::string_view name, MetricType type, std::string_view help);
  void Sample(Labels labels, uint64_t value);
  void Sample(Labels labels, double value);
  // All buckets, _sum and _count. Requires: the family is a histogram.
  void Histogram(Labels labels, const LatencyHistogram::Snapshot& times);

  std::string Take() && { return std::move(text_); }

 private:
  void Line(std::string_view suffix, Labels labels, std::string_view bound, std::string_view value);

  std::string text_;
  std::string name_;  // of the family
};

}  // namespace kvstore
