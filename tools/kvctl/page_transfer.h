// Pages between a file and the daemon, one page in memory at a time: through shared memory on a
// Unix socket, inline over TCP.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/client/client.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/page_file.h"

namespace kvstore::kvctl {

struct PutReport {
  uint64_t stored_blocks = 0;
  uint64_t existing_blocks = 0;  // were there, or are being written by another
};

struct GetReport {
  uint64_t found_blocks = 0;                          // the match
  uint64_t delivered_blocks = 0;                      // of these, written to the sink
  std::array<uint64_t, client::kNumTiers> by_tier{};  // where the delivered ones were found
  std::string lost_reason;                            // why fewer were delivered than found
};

// What a transfer works with. `timeout` bounds the time without progress.
struct TransferOptions {
  const client::Namespace& ns;
  std::span<const BlockHash> hashes;
  absl::Duration timeout;
};

// Reads page by page straight into the reserved slots. When the daemon has no free page, waits for
// evictions up to the timeout. Errors: ResourceExhausted, no page came free (says how far it got);
// those of the source and the client.
absl::StatusOr<PutReport> PutShared(client::Client& client, const TransferOptions& options,
                                    PageSource& source);
absl::StatusOr<PutReport> PutInline(DaemonCalls& daemon, const TransferOptions& options,
                                    PageSource& source);

// Writes the longest stored prefix. A block that is lost on its way ends it there. Errors: those of
// the sink and the client.
absl::StatusOr<GetReport> GetShared(client::Client& client, const TransferOptions& options,
                                    PageSink& sink);
absl::StatusOr<GetReport> GetInline(DaemonCalls& daemon, const TransferOptions& options,
                                    PageSink& sink);

}  // namespace kvstore::kvctl
