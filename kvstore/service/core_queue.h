// The calls that wait for the core, served in turn by tenant: whoever sends a thousand calls delays
// his own next one, not somebody else's.
//
// Each call that is taken in posts one step to the core, and each step runs the call whose turn it
// is, which need not be the one that posted it. Calls of one tenant keep their order.
//
// Thread-safe. Must outlive the executor's queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/executor.h"
#include "kvstore/policy/fair_queue.h"

namespace kvstore::service {

class CoreQueue {
 public:
  // `calls_max`: that wait, of all tenants; of one at most as many as there is room left.
  CoreQueue(Executor& core, size_t calls_max)
      : core_(core), queue_({.items_max = calls_max, .items_per_tenant_max = calls_max}) {}

  // `request_bytes`: what the core has to look at. False, and `task` is dropped, when the queue or
  // the tenant's part of it is full.
  [[nodiscard]] bool TryPost(std::string_view tenant, size_t request_bytes, Task task)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void RunNext() ABSL_LOCKS_EXCLUDED(mutex_);

  Executor& core_;
  absl::Mutex mutex_;
  // Tenants by a hash of their name, which differs from run to run: names take no memory, and
  // nobody can choose one that shares the turn of another.
  policy::FairQueue<Task> queue_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::service
