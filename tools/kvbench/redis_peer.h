// Redis over its Unix socket, on the same work as our own store.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct redisContext;

namespace kvstore::bench {

// Confined to one thread.
class RedisPeer {
 public:
  // Errors: Unavailable.
  static absl::StatusOr<RedisPeer> Connect(const std::string& socket_path);

  // One MSET of `values.size() / value_bytes` values under `key_prefix` and their position.
  absl::Status Set(const std::string& key_prefix, std::span<const std::byte> values,
                   size_t value_bytes);
  // One MGET of as many; the values stay in the client library's memory, where they are compared
  // after the clock stopped. Returns seconds. Errors: DataLoss, they differ from `expect`.
  absl::StatusOr<double> Get(const std::string& key_prefix, std::span<const std::byte> expect,
                             size_t value_bytes);
  absl::Status FlushAll();
  // Of the server. 0 where it does not tell.
  absl::StatusOr<double> ServerCpuSeconds();
  absl::StatusOr<std::string> Version();

 private:
  struct Free {
    void operator()(redisContext* context) const;
  };
  explicit RedisPeer(redisContext* context) : context_(context) {}
  absl::Status Failure(const char* what) const;

  std::unique_ptr<redisContext, Free> context_;
};

}  // namespace kvstore::bench
