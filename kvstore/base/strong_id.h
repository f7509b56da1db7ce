// Strong ids: integers that cannot be swapped for one another or for a count.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <utility>

namespace kvstore {

// `Tag` is an empty struct that names the kind of id. Immutable value; ordering is by value.
template <typename Tag, typename Rep = uint64_t>
class StrongId {
 public:
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;

  template <typename H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  Rep value_ = 0;
};

// A namespace as it stands now: clearing a namespace gives it a new NamespaceId (see store.h,
// "Epochs").
using NamespaceId = StrongId<struct NamespaceIdTag, uint32_t>;
using SessionId = StrongId<struct SessionIdTag>;
using LeaseId = StrongId<struct LeaseIdTag>;
using ReservationId = StrongId<struct ReservationIdTag>;
// Pages of one PoolId share slabs: one tenant and one slot size.
using PoolId = StrongId<struct PoolIdTag, uint32_t>;

}  // namespace kvstore
