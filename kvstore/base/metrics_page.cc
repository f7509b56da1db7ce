#include "kvstore/base/metrics_page.h"

#include <charconv>

namespace kvstore {
namespace {

std::string_view TypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      break;
  }
  return "histogram";
}

std::string Number(double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : "NaN";
}

// Label values may hold anything; three characters must be escaped.
void AppendLabel(std::string_view name, std::string_view value, std::string* out) {
  out->append(name);
  out->append("=\"");
  for (const char c : value) {
    if (c == '\\' || c == '"') out->push_back('\\');
    if (c == '\n') {
      out->append("\\n");
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

}  // namespace

void MetricsPage::Family(std::string_view name, MetricType type, std::string_view help) {
  name_ = name;
  text_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name);
  text_.append(" ").append(TypeName(type)).append("\n");
}

void MetricsPage::Line(std::string_view suffix, Labels labels, std::string_view bound,
                       std::string_view value) {
  text_.append(name_).append(suffix);
  char separator = '{';
  for (const auto& [label, label_value] : labels) {
    text_.push_back(std::exchange(separator, ','));
    AppendLabel(label, label_value, &text_);
  }
  if (!bound.empty()) {
    text_.push_back(std::exchange(separator, ','));
    AppendLabel("le", bound, &text_);
  }
  if (separator == ',') text_.push_back('}');
  text_.append(" ").append(value).append("\n");
}

void MetricsPage::Sample(Labels labels, uint64_t value) {
  Line("", labels, "", std::to_string(value));
}

void MetricsPage::Sample(Labels labels, double value) { Line("", labels, "", Number(value)); }

void MetricsPage::Histogram(Labels labels, const LatencyHistogram::Snapshot& times) {
  uint64_t total = 0;
  for (size_t i = 0; i < LatencyHistogram::kNumBuckets; ++i) {
    total += times.counts[i];
    const bool is_last = i == LatencyHistogram::kBoundsNs.size();
    const std::string bound =
        is_last ? "+Inf" : Number(static_cast<double>(LatencyHistogram::kBoundsNs[i]) / 1e9);
    Line("_bucket", labels, bound, std::to_string(total));
  }
  Line("_sum", labels, "", Number(static_cast<double>(times.sum_ns) / 1e9));
  Line("_count", labels, "", std::to_string(total));
}

}  // namespace kvstore
