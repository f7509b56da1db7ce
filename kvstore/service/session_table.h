// Sessions by their token: the memory socket adds and removes them, gRPC calls look them up.
//
// A token is 128 random bits, told to one connection only; together with the connection's uid it
// names the session. Thread-safe.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/strong_id.h"

namespace kvstore::service {

using SessionToken = std::array<uint8_t, 16>;

struct SessionRecord {
  SessionId id;
  std::string tenant;
  uid_t uid = 0;
  MemoryAccess access = MemoryAccess::kReadOnly;
};

class SessionTable {
 public:
  // Errors: Unavailable, the kernel gives no random bytes.
  absl::StatusOr<SessionToken> Add(SessionRecord record) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const SessionToken& token) ABSL_LOCKS_EXCLUDED(mutex_);
  // The session that `token` names, if it belongs to `uid`.
  // Errors: InvalidArgument, not 16 bytes; Unauthenticated, unknown, ended, or another uid's: the
  // three look the same from outside.
  absl::StatusOr<SessionRecord> Find(std::string_view token, std::optional<uid_t> uid) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<SessionToken, SessionRecord> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::service
