// What a suite has measured: figures, each with the ceiling of this machine from the same run and
// the budget that it is held to.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/kvbench/machine.h"
#include "tools/kvbench/sample.h"

namespace kvstore::bench {

enum class Better : uint8_t { kHigher, kLower };

// The best that this machine could do, in the unit of the figure.
struct Ceiling {
  double value = 0;
  std::string name;  // what was measured: "memcpy, pieces of 2MiB"
};

// A goal of docs/performance.md.
struct Budget {
  std::string id;  // "P12"
  enum class On : uint8_t { kValue, kRatio } on = On::kValue;
  double limit = 0;  // a value: in the figure's direction; a ratio: at least
};

// One figure. Names are suite/operation/size, then a peer's name if the figure is not ours.
struct Result {
  std::string name;
  std::string unit;  // "GB/s" (of 10^9 bytes), "ms", "ns", "B", "s/GB", "%", "x"
  Better better = Better::kHigher;
  double median = 0, min = 0, max = 0;
  uint64_t n = 0;  // measurements that the three are taken over
  std::optional<Ceiling> ceiling;
  std::optional<Budget> budget;
  std::vector<std::string> checked;  // what was found true in each repeat: "same_tokens"

  // Share of the ceiling that is reached, for times as well: 1 is at the ceiling, 0.5 half as fast.
  std::optional<double> Ratio() const;
  // nullopt: there is no budget.
  std::optional<bool> IsMet() const;
};

// Median, min and max of `sample`. Requires a value in it.
Result MakeResult(std::string name, std::string unit, Better better, const Sample& sample);
// As above, of a quantity that is given by one count (memory, write amplification).
Result MakeResult(std::string name, std::string unit, Better better, double value);

// Confined to one thread.
class Report {
 public:
  Report(std::string suite, Machine machine) : suite_(std::move(suite)), machine_(machine) {}

  void Add(Result result) { results_.push_back(std::move(result)); }
  // A sentence for the reader: what was left out and why, what the sizes were.
  void AddNote(std::string note) { notes_.push_back(std::move(note)); }
  // Sets too small to be judged: no verdicts are printed.
  void set_is_quick() { is_quick_ = true; }

  bool is_quick() const { return is_quick_; }

  const std::string& suite() const { return suite_; }
  const std::vector<Result>& results() const { return results_; }

  // {"suite", "machine", "commit", "build", "results": [...], ...}; the fields are a contract.
  nlohmann::json ToJson() const;
  // Aligned columns: name, median, range, ceiling, ratio, budget.
  std::string ToTable() const;

 private:
  std::string suite_;
  Machine machine_;
  std::vector<Result> results_;
  std::vector<std::string> notes_;
  bool is_quick_ = false;
};

// Three significant digits, never in exponents: "0.0123", "4.56", "1234".
std::string FormatNumber(double value);

}  // namespace kvstore::bench
