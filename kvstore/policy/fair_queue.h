// A bounded queue that serves its tenants in turn, by bytes: who queues a thousand pages delays his
// own next page, not the first one of somebody else.
//
// Start-time fair queueing: an item starts, in virtual time, when its tenant's previous one has
// ended, but not before the present; the item with the earliest start is served. A tenant may hold
// as many places as there are free ones, at most `items_per_tenant_max`: one alone gets half of the
// queue, and there is always room for the first item of another.
//
// Confined to one thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace kvstore::policy {

// `Item` is movable. Tenants are numbers that the caller chooses.
template <typename Item>
class FairQueue {
 public:
  struct Limits {
    size_t items_max = 0;
    size_t items_per_tenant_max = 0;
  };
  explicit FairQueue(Limits limits) : limits_(limits) {}

  bool HasRoomFor(uint32_t tenant) const {
    const size_t own = size_of(tenant);
    return own < limits_.items_per_tenant_max && own < limits_.items_max - size_;
  }
  // Requires: HasRoomFor(tenant).
  void Push(uint32_t tenant, uint64_t cost, Item item) {
    Flow& flow = flows_[tenant];
    if (flow.items.empty()) {
      flow.start = std::max(flow.start, now_);
      waiting_.push_back(tenant);
    }
    flow.items.emplace_back(cost, std::move(item));
    ++size_;
  }
  // The next item in turn among the tenants for which `may_serve(tenant)` holds. O(tenants that
  // wait).
  template <typename MayServe>
  std::optional<std::pair<uint32_t, Item>> Pop(MayServe may_serve) {
    std::optional<size_t> first;
    for (size_t i = 0; i < waiting_.size(); ++i) {
      const bool is_earlier = !first || Order(waiting_[i]) < Order(waiting_[*first]);
      if (is_earlier && may_serve(waiting_[i])) first = i;
    }
    if (!first) return std::nullopt;
    const uint32_t tenant = waiting_[*first];
    Flow& flow = flows_[tenant];
    auto [cost, item] = std::move(flow.items.front());
    flow.items.pop_front();
    --size_;
    now_ = std::max(now_, flow.start);
    flow.start += cost;
    if (flow.items.empty()) {
      waiting_[*first] = waiting_.back();
      waiting_.pop_back();
    }
    return std::pair<uint32_t, Item>(tenant, std::move(item));
  }

  size_t size() const { return size_; }
  size_t size_of(uint32_t tenant) const {
    const auto it = flows_.find(tenant);
    return it == flows_.end() ? 0 : it->second.items.size();
  }
  // Tenants with an item in the queue, in no order.
  const std::vector<uint32_t>& waiting() const { return waiting_; }

 private:
  struct Flow {
    uint64_t start = 0;  // of its first item; of its next one while it has none
    std::deque<std::pair<uint64_t, Item>> items;
  };
  std::pair<uint64_t, uint32_t> Order(uint32_t tenant) const {
    return {flows_.find(tenant)->second.start, tenant};
  }

  const Limits limits_;
  uint64_t now_ = 0;  // virtual: the start of the item served last, in bytes
  size_t size_ = 0;
  absl::flat_hash_map<uint32_t, Flow> flows_;
  std::vector<uint32_t> waiting_;
};

}  // namespace kvstore::policy
