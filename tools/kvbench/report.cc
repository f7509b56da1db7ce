#include "tools/kvbench/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace kvstore::bench {
namespace {

constexpr size_t kNumColumns = 9;
using Cells = std::array<std::string, kNumColumns>;

std::string FormatLimit(const Result& result) {
  const Budget& budget = *result.budget;
  if (budget.on == Budget::On::kRatio) return absl::StrCat("ratio >= ", FormatNumber(budget.limit));
  const char* sign = result.better == Better::kHigher ? ">= " : "<= ";
  return absl::StrCat(sign, FormatNumber(budget.limit));
}

Cells CellsOf(const Result& result, bool is_quick) {
  Cells cells{result.name,
              result.unit,
              FormatNumber(result.median),
              result.n > 1 ? absl::StrCat(FormatNumber(result.min), "..", FormatNumber(result.max))
                           : std::string(),
              {},
              {},
              {},
              {},
              absl::StrJoin(result.checked, " ")};
  if (result.ceiling) {
    cells[4] = FormatNumber(result.ceiling->value);
    cells[5] = absl::StrFormat("%.2f", *result.Ratio());
    cells[7] = result.ceiling->name;
  }
  if (result.budget) {
    const char* verdict = is_quick ? "not judged" : *result.IsMet() ? "met" : "MISSED";
    cells[6] = absl::StrCat(result.budget->id, " ", FormatLimit(result), ": ", verdict);
  }
  return cells;
}

bool IsNumber(size_t column) { return column >= 2 && column <= 5; }

nlohmann::json ResultJson(const Result& result) {
  nlohmann::json out = {{"name", result.name}, {"unit", result.unit},     {"median", result.median},
                        {"min", result.min},   {"max", result.max},       {"n", result.n},
                        {"ceiling", nullptr},  {"ceiling_name", nullptr}, {"ratio", nullptr}};
  out["better"] = result.better == Better::kHigher ? "higher" : "lower";
  if (result.ceiling) {
    out["ceiling"] = result.ceiling->value;
    out["ceiling_name"] = result.ceiling->name;
    out["ratio"] = *result.Ratio();
  }
  for (const std::string& what : result.checked) out[what] = true;
  if (result.budget) {
    out["budget"] = {{"id", result.budget->id},
                     {"on", result.budget->on == Budget::On::kRatio ? "ratio" : "value"},
                     {"limit", result.budget->limit},
                     {"met", *result.IsMet()}};
  }
  return out;
}

}  // namespace

std::optional<double> Result::Ratio() const {
  if (!ceiling) return std::nullopt;
  const double above = better == Better::kHigher ? median : ceiling->value;
  const double below = better == Better::kHigher ? ceiling->value : median;
  return below > 0 ? above / below : 0;
}

std::optional<bool> Result::IsMet() const {
  if (!budget) return std::nullopt;
  if (budget->on == Budget::On::kRatio) return Ratio().value_or(0) >= budget->limit;
  return better == Better::kHigher ? median >= budget->limit : median <= budget->limit;
}

Result MakeResult(std::string name, std::string unit, Better better, const Sample& sample) {
  Result result;
  result.name = std::move(name);
  result.unit = std::move(unit);
  result.better = better;
  result.median = sample.Median();
  result.min = sample.Min();
  result.max = sample.Max();
  result.n = sample.size();
  return result;
}

Result MakeResult(std::string name, std::string unit, Better better, double value) {
  return MakeResult(std::move(name), std::move(unit), better, Sample({value}));
}

std::string FormatNumber(double value) {
  const double size = std::abs(value);
  int digits = 0;
  if (size > 0 && size < 100) digits = 2 - static_cast<int>(std::floor(std::log10(size)));
  return absl::StrFormat("%.*f", std::min(digits, 6), value);
}

nlohmann::json Report::ToJson() const {
  nlohmann::json out = {{"suite", suite_},
                        {"machine", MachineJson(machine_)},
                        {"commit", machine_.commit},
                        {"build", machine_.build},
                        {"command", machine_.command},
                        {"started", machine_.started},
                        {"load_average", machine_.load_average},
                        {"quick", is_quick_},
                        {"notes", notes_},
                        {"results", nlohmann::json::array()}};
  for (const Result& result : results_) out["results"].push_back(ResultJson(result));
  return out;
}

std::string Report::ToTable() const {
  std::vector<Cells> lines = {
      {"figure", "unit", "median", "range", "ceiling", "ratio", "budget", "ceiling is", "checked"}};
  for (const Result& result : results_) lines.push_back(CellsOf(result, is_quick_));
  std::array<size_t, kNumColumns> widths{};
  for (const Cells& cells : lines) {
    for (size_t i = 0; i < kNumColumns; ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string out = absl::StrCat(MachineLine(machine_), "\n\n");
  for (const Cells& cells : lines) {
    std::string line;
    for (size_t i = 0; i < kNumColumns; ++i) {
      const std::string space(widths[i] - cells[i].size(), ' ');
      absl::StrAppend(&line, i > 0 ? "  " : "", IsNumber(i) ? space : "", cells[i],
                      IsNumber(i) ? "" : space);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  for (const std::string& note : notes_) absl::StrAppend(&out, "note: ", note, "\n");
  return out;
}

}  // namespace kvstore::bench
