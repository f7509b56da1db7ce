#include "kvstore/service/core_queue.h"

#include <optional>
#include <utility>

#include "absl/hash/hash.h"

namespace kvstore::service {
namespace {

constexpr size_t kTurns = 1024;
constexpr uint64_t kCallBytes = 512;  // what a call costs beside looking at its request

}  // namespace

bool CoreQueue::TryPost(std::string_view tenant, size_t request_bytes, Task task) {
  const auto turn =
      static_cast<uint32_t>(absl::HashOf(absl::string_view(tenant.data(), tenant.size())) % kTurns);
  {
    absl::MutexLock lock(&mutex_);
    if (!queue_.HasRoomFor(turn)) return false;
    queue_.Push(turn, kCallBytes + request_bytes, std::move(task));
  }
  core_.Post([this] { RunNext(); });
  return true;
}

void CoreQueue::RunNext() {
  std::optional<std::pair<uint32_t, Task>> next;
  {
    absl::MutexLock lock(&mutex_);
    next = queue_.Pop([](uint32_t) { return true; });
  }
  if (next.has_value()) next->second();
}

}  // namespace kvstore::service
