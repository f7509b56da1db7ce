// The edge threads: they copy inline pages, write replies into sockets and run the deadlines of
// calls, so that the core does not.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"

namespace kvstore::service {

// Thread-safe. What is posted is bounded by the calls that CallGate lets in.
class EdgePool {
 public:
  EdgePool(size_t num_threads, const Clock& clock);
  // The thread for a new call; a call keeps its thread, which orders its steps.
  Executor& Next();
  // Runs what is queued and joins. Idempotent.
  void Stop();

 private:
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::atomic<size_t> next_{0};
};

}  // namespace kvstore::service
