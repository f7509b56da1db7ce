#include "kvstore/service/session_table.h"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"

namespace kvstore::service {

absl::StatusOr<SessionToken> SessionTable::Add(SessionRecord record) {
  SessionToken token;
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return absl::UnavailableError("no random bytes for a session token");
  }
  absl::MutexLock lock(&mutex_);
  sessions_.emplace(token, std::move(record));
  return token;
}

void SessionTable::Remove(const SessionToken& token) {
  absl::MutexLock lock(&mutex_);
  sessions_.erase(token);
}

absl::StatusOr<SessionRecord> SessionTable::Find(std::string_view token,
                                                 std::optional<uid_t> uid) const {
  SessionToken key;
  if (token.size() != key.size())
    return absl::InvalidArgumentError("kvstore-session-bin: not 16 bytes");
  std::ranges::copy(token, key.begin());
  absl::MutexLock lock(&mutex_);
  auto it = sessions_.find(key);
  if (it == sessions_.end() || !uid.has_value() || it->second.uid != *uid) {
    return absl::UnauthenticatedError("no such session: open one on the memory socket");
  }
  return it->second;
}

size_t SessionTable::size() const {
  absl::MutexLock lock(&mutex_);
  return sessions_.size();
}

}  // namespace kvstore::service
