// How long calls took and how they ended, by operation: what a metrics page shows.
//
// From the moment a call was let in until its reply was handed to gRPC; an Acquire until its first
// message, which tells the match (the pages that come up afterwards are timed by tier). Unary calls
// that are refused at the door are counted by CallGate only.
//
// Thread-safe, lock-free.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/base/latency_histogram.h"

namespace kvstore::service {

enum class Operation : uint8_t {
  kOpenNamespace,
  kFindNamespace,
  kMatch,
  kAcquire,
  kRelease,
  kRenew,
  kReserve,
  kCommit,
  kAbort,
  kPut,
  kGet,
  kClear,
  kAdmin,
};
inline constexpr size_t kNumOperations = 13;

struct CallRow {
  std::string operation;                                        // "acquire"
  std::vector<std::pair<std::string, uint64_t>> calls_by_code;  // "OK", ...; those that occurred
  LatencyHistogram::Snapshot times;
};

class CallTimes {
 public:
  void Record(Operation operation, absl::StatusCode code, absl::Duration took);
  std::vector<CallRow> Rows() const;

 private:
  static constexpr size_t kNumCodes = 17;  // of gRPC and Abseil, which are the same
  struct Counts {
    LatencyHistogram times;
    std::array<std::atomic<uint64_t>, kNumCodes> by_code{};
  };
  std::array<Counts, kNumOperations> counts_;
};

}  // namespace kvstore::service
