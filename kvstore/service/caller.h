// Who is on the other end of a connection, and what it may do. Identity comes from the transport
// alone, never from a request (access_list.h says who becomes which caller).
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/service/tenants.h"

namespace kvstore::service {

inline constexpr char kDefaultTenant[] = "default";

// Immutable value. Equal callers share a gRPC server.
struct Caller {
  enum class Rights { kOwner, kTenant };
  enum class Way { kUnix, kLoopback, kTls };
  Way way = Way::kUnix;
  std::optional<uid_t> uid;  // of a Unix socket's peer
  Rights rights = Rights::kTenant;
  std::string home_tenant = kDefaultTenant;

  bool is_admin() const { return rights == Rights::kOwner; }
  // The tenant that the caller acts for when it names `named` (empty: none named).
  // Errors: InvalidArgument, not a tenant name; PermissionDenied.
  absl::StatusOr<std::string> TenantFor(std::string_view named) const;
  // "uid 1000", "tcp", "certificate of team-a": for logs and limits.
  std::string Label() const;
  friend bool operator==(const Caller&, const Caller&) = default;
};

}  // namespace kvstore::service
