// Who is on the other end of a connection, and what it may do. Identity comes from the transport
// alone, never from a request.
//
//   our own uid, root      any tenant that it names, "default" if it names none; the Admin service
//   another allowed uid N  tenant "uid-N" and no other
//   loopback TCP           nobody in particular: tenant "default" and no other
//   everyone else          not connected at all
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvstore::service {

inline constexpr char kDefaultTenant[] = "default";
inline constexpr size_t kTenantBytesMax =
    63;  // fits the memory socket's field with a zero behind it

// 1 to 63 of letters, digits, '.', '_', '-'. Errors: InvalidArgument.
absl::Status CheckTenantName(std::string_view tenant);

// Immutable value.
struct Caller {
  enum class Rights { kOwner, kTenant };
  std::optional<uid_t> uid;  // nullopt: loopback TCP
  Rights rights = Rights::kTenant;
  std::string home_tenant = kDefaultTenant;

  bool is_admin() const { return rights == Rights::kOwner; }
  // The tenant that the caller acts for when it names `named` (empty: none named).
  // Errors: InvalidArgument, not a tenant name; PermissionDenied.
  absl::StatusOr<std::string> TenantFor(std::string_view named) const;
  // "uid 1000", "tcp": for logs and limits.
  std::string Label() const;
};

// Immutable.
class AccessList {
 public:
  AccessList(uid_t own_uid, std::vector<uid_t> allowed)
      : own_uid_(own_uid), allowed_(std::move(allowed)) {}
  // nullopt: may not connect.
  std::optional<Caller> CallerOf(uid_t uid) const;
  static Caller LoopbackCaller() { return Caller{}; }
  bool allows_others() const { return !allowed_.empty(); }

 private:
  const uid_t own_uid_;
  const std::vector<uid_t> allowed_;
};

}  // namespace kvstore::service
