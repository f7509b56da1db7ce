// StorePages is the PrefixCache that is backed by a kvstore daemon: hooks around prefill and
// decode.
//
// This is the only place where a failure of the store turns into recomputation. Whatever goes wrong
// (no daemon, a deadline, bytes that differ, a lost lease, no space) shortens the prefix or skips a
// save, and is counted by reason; the request goes on.
//
// Load: pages that lie in the GPU tier are used where they are, under the lease, after their
// checksums were verified; IsIntact() tells afterwards whether they stayed ours. Pages from colder
// tiers are copied into private pages, verified on the way, and offered to the GPU tier at
// Finish(). Save: new pages are private; a full one is copied into the store by the saver thread.
//
// Threads: externally synchronised; one saver thread of its own. Every wait has a deadline.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine_adapter/paging/aligned_buffer.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "kvstore/client/client.h"

namespace kvstore::engine {

struct StorePagesOptions {
  std::string target;  // "unix:PATH"
  std::string namespace_name;
  NamespaceSpec spec;
  absl::Duration connect_deadline = absl::Seconds(5);
  absl::Duration match_deadline = absl::Seconds(2);
  // For all loaded pages together, from LoadPrefix on. A slow disk must not make a request slower
  // than computing; the engine's prefill of the same tokens usually takes longer than this.
  absl::Duration load_deadline = absl::Seconds(5);
  // For what is still to be saved when the request has ended.
  absl::Duration save_deadline = absl::Seconds(10);
};

class StorePages final : public PrefixCache {
 public:
  // Connects and opens the namespace, within options.connect_deadline. Never fails: without a
  // daemon nothing is found and nothing saved, and load().failures says why.
  StorePages(const KvLayout& layout, StorePagesOptions options);
  ~StorePages() override;  // Finish()

  // Why the store cannot be used; OK while it can.
  const absl::Status& connection() const { return connection_; }

  PrefixLoad LoadPrefix(std::span<const uint32_t> token_ids) override;
  const std::byte* LoadedPage(int64_t block_index) const override;
  int64_t WaitReady(int64_t layer) override;
  bool IsIntact() override;
  absl::StatusOr<std::byte*> NewPage(int64_t block_index) override;
  void PublishPage(int64_t block_index, std::span<const uint32_t> block_token_ids) override;
  void Finish() override;
  const PrefixLoad& load() const override { return load_; }

  // Saves that were skipped, by reason. After Finish().
  const std::map<std::string, int64_t>& save_failures() const { return save_failures_; }

 private:
  struct LoadedBlock {
    const std::byte* page = nullptr;
    bool is_in_place = false;  // in the GPU tier, under the lease
    client::Tier found_in{};
  };
  struct Save {
    int64_t block_index = 0;
    BlockHash hash;
    std::optional<BlockHash> parent;
    const std::byte* page = nullptr;
  };

  absl::Status Connect();
  absl::StatusOr<std::byte*> AddPrivatePage();
  absl::Status FetchBlock(uint32_t block, absl::Time deadline);
  void TruncateLoad(int64_t blocks, const absl::Status& why);
  void CountLoaded();
  void QueuePromotions();
  void Queue(Save save) ABSL_LOCKS_EXCLUDED(mutex_);

  void RunSaver() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasSaverWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SaveRun(std::span<const Save> run);
  absl::StatusOr<client::Reservation> ReserveRun(std::span<const Save> run,
                                                 std::span<const BlockHash> hashes);

  const KvLayout layout_;
  const StorePagesOptions options_;
  absl::Status connection_;
  std::unique_ptr<client::Client> client_;
  std::optional<client::Namespace> namespace_;
  std::optional<client::Lease> lease_;
  std::vector<BlockHash> hashes_;  // of the sequence so far, [blocks]
  std::vector<LoadedBlock> loaded_;
  std::vector<AlignedBuffer> private_pages_;
  std::map<int64_t, const std::byte*> new_pages_;  // by block index, of private_pages_
  absl::Time load_by_;
  bool is_fetched_ = false;
  bool is_finished_ = false;
  PrefixLoad load_;

  // The saver's side.
  client::Tier save_tier_ = client::Tier::kGpu;   // until the daemon says that it has none
  std::map<std::string, int64_t> save_failures_;  // the saver's until it is joined
  absl::Mutex mutex_;
  std::deque<Save> queue_ ABSL_GUARDED_BY(mutex_);
  bool is_closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time save_by_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  std::thread saver_;
};

}  // namespace kvstore::engine
