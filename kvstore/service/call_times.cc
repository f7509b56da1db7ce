#include "kvstore/service/call_times.h"

namespace kvstore::service {
namespace {

constexpr std::array<const char*, kNumOperations> kOperationNames = {
    "open_namespace", "find_namespace", "match", "acquire", "release", "renew", "reserve",
    "commit",         "abort",          "put",   "get",     "clear",   "admin"};

}  // namespace

void CallTimes::Record(Operation operation, absl::StatusCode code, absl::Duration took) {
  Counts& counts = counts_[static_cast<size_t>(operation)];
  counts.times.Record(took);
  const size_t number = static_cast<size_t>(code);
  const size_t unknown = static_cast<size_t>(absl::StatusCode::kUnknown);
  counts.by_code[number < kNumCodes ? number : unknown].fetch_add(1, std::memory_order_relaxed);
}

std::vector<CallRow> CallTimes::Rows() const {
  std::vector<CallRow> rows;
  for (size_t i = 0; i < kNumOperations; ++i) {
    CallRow& row = rows.emplace_back();
    row.operation = kOperationNames[i];
    row.times = counts_[i].times.snapshot();
    for (size_t code = 0; code < kNumCodes; ++code) {
      const uint64_t calls = counts_[i].by_code[code].load(std::memory_order_relaxed);
      if (calls > 0)
        row.calls_by_code.emplace_back(
            absl::StatusCodeToString(static_cast<absl::StatusCode>(code)), calls);
    }
  }
  return rows;
}

}  // namespace kvstore::service
