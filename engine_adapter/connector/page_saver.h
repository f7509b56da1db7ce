// PageSaver saves the full pages of one sequence in the background.
//
// Threads: Queue() and Finish() on the sequence's thread; one thread of its own. The pages, and what
// is given at construction, outlive Finish().
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/connector/store_connection.h"

namespace kvstore::engine {

// "DEADLINE_EXCEEDED" -> "deadline_exceeded": the key of a counter.
std::string FailureReason(const absl::Status& status);

class PageSaver {
 public:
  // Pages that one Reserve call, and one PageMover::Save(), has: few enough that a long prompt starts
  // to be saved while it is still being computed.
  static constexpr size_t kRunPagesMax = 64;
  struct Page {
    int64_t block_index = 0;
    BlockHash hash;
    std::optional<BlockHash> parent;
    const std::byte* page = nullptr;
  };

  // `ns` is of `connection`.
  PageSaver(StoreConnection& connection, client::Namespace ns, PageMover& mover);
  ~PageSaver() { Finish(absl::InfinitePast()); }

  // Returns at once.
  void Queue(Page page) ABSL_LOCKS_EXCLUDED(mutex_);
  // Saves what is queued until `deadline`, gives up the rest, and waits for both. Idempotent.
  void Finish(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // Pages that were not saved, by reason. After Finish().
  const std::map<std::string, int64_t>& failures() const { return failures_; }

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SaveRun(std::span<const Page> run);
  absl::StatusOr<client::Reservation> Reserve(std::span<const Page> run,
                                              std::span<const BlockHash> hashes);

  StoreConnection& connection_;
  const client::Namespace ns_;
  PageMover& mover_;
  // The thread's, until it is joined.
  client::Tier tier_ = client::Tier::kGpu;  // until the daemon says that it has none
  std::map<std::string, int64_t> failures_;
  absl::Mutex mutex_;
  std::deque<Page> queue_ ABSL_GUARDED_BY(mutex_);
  bool is_closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time save_by_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  std::thread thread_;
};

}  // namespace kvstore::engine
