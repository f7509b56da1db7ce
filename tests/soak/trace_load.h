// Clients that replay a trace against a daemon and check every byte that they get.
//
// Each request gets its prefix and puts what was missing, as an engine does. Pages are a function
// of their block's hash, so that any reader can check any page. Failures of the daemon are
// expected, wrong bytes and calls that outlive their deadline are not.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kvstore/client/client.h"

namespace kvstore::testing {

using Trace = std::vector<std::vector<uint32_t>>;  // the ids of a request's blocks
// Errors: none; an unreadable file is an empty trace.
Trace ReadTrace(const std::string& path);

struct LoadCounts {
  uint64_t requests = 0, matched_blocks = 0, checked_pages = 0, stored_blocks = 0;
  uint64_t failed_calls = 0;  // the daemon was away, busy or refused
  uint64_t wrong_pages = 0;
  uint64_t overruns = 0;  // calls that ended later than their deadline and its grace
};

// One client and its thread. Starts at once, stops with Stop().
class TraceLoad {
 public:
  struct Options {
    std::string target, tenant;
    uint64_t seed = 0;  // where in the trace it starts
  };
  // `trace` outlives it and has requests.
  TraceLoad(const Options& options, const Trace& trace);
  ~TraceLoad();  // Stop()
  void Stop();
  LoadCounts counts() const;

 private:
  void Run(uint64_t seed);
  void Replay(const std::vector<uint32_t>& ids);
  void Check(std::span<const BlockHash> hashes, const std::vector<std::byte>& pages);
  // Counts an overrun if `call` outlives its deadline.
  template <typename Call>
  auto Timed(Call call);

  const Trace& trace_;
  std::unique_ptr<client::Client> client_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> requests_{0}, matched_blocks_{0}, checked_pages_{0}, stored_blocks_{0},
      failed_calls_{0}, wrong_pages_{0}, overruns_{0};
  std::thread thread_;
};

}  // namespace kvstore::testing
