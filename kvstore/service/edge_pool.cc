#include "kvstore/service/edge_pool.h"

#include "absl/strings/str_cat.h"

namespace kvstore::service {

EdgePool::EdgePool(size_t num_threads, const Clock& clock) {
  for (size_t i = 0; i < num_threads; ++i) {
    // Only Post() is used, which has no bound of its own.
    loops_.push_back(
        std::make_unique<EventLoop>(absl::StrCat("kv-edge-", i), /*queue_max=*/1, clock));
  }
}

Executor& EdgePool::Next() {
  return *loops_[next_.fetch_add(1, std::memory_order_relaxed) % loops_.size()];
}

void EdgePool::Stop() {
  for (auto& loop : loops_) loop->Stop();
}

}  // namespace kvstore::service
