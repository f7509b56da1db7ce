// Put and Get by value over gRPC, for clients without shared memory. Blocking; thread-safe.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client/client.h"
#include "kvstore/client/connection.h"

namespace kvstore::client {

absl::StatusOr<PutResult> InlinePut(Connection& connection, const Namespace& ns,
                                    std::span<const BlockHash> hashes,
                                    std::span<const std::byte> pages, absl::Duration timeout);
// Writes nothing past `pages`, whatever the daemon sends.
absl::StatusOr<GetResult> InlineGet(Connection& connection, const Namespace& ns,
                                    std::span<const BlockHash> hashes, std::span<std::byte> pages,
                                    absl::Duration timeout);

}  // namespace kvstore::client
