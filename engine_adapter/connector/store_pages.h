// StorePages is the PrefixCache that is backed by a kvstore daemon: hooks around prefill and
// decode.
//
// This is the only place where a failure of the store turns into recomputation. Whatever goes wrong
// (no daemon, a deadline, bytes that differ, a lost lease, no space) shortens the prefix or skips a
// save, and is counted by reason; the request goes on.
//
// Load: pages that lie in the GPU tier are used where they are, under the lease; pages from colder
// tiers are brought into private pages, and offered to the GPU tier at Finish(). All are checked:
// before they are used, or, on a device, before what was computed from them is used (IsIntact()).
// Save: new pages are private; a full one is copied into the store by the saver.
//
// Threads: externally synchronised; one saver thread of its own. Every wait has a deadline.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine_adapter/connector/page_mover.h"
#include "engine_adapter/connector/page_saver.h"
#include "engine_adapter/connector/store_connection.h"
#include "engine_adapter/paging/page_memory.h"
#include "engine_adapter/paging/prefix_cache.h"

namespace kvstore::engine {

struct StorePagesOptions {
  absl::Duration match_deadline = absl::Seconds(2);
  // For all loaded pages together, from LoadPrefix on. A slow disk must not make a request slower
  // than computing; the engine's prefill of the same tokens usually takes longer than this.
  absl::Duration load_deadline = absl::Seconds(5);
  // For what is still to be saved when the request has ended.
  absl::Duration save_deadline = absl::Seconds(10);
};

class StorePages final : public PrefixCache {
 public:
  // Pages are `memory`'s, of the back-end that `mover` moves them for; both outlive this. Never
  // fails: without a daemon nothing is found and nothing saved, and load().failures says why.
  StorePages(const KvLayout& layout, std::shared_ptr<StoreConnection> connection,
             PageMemory& memory, PageMover& mover, StorePagesOptions options = {});
  ~StorePages() override;  // Finish()

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
  absl::StatusOr<std::byte*> AddPrivatePage();
  absl::Status PlaceBlock(uint32_t block);
  void TruncateLoad(int64_t blocks, const absl::Status& why);
  void CountLoaded();
  void QueuePage(int64_t block, const std::byte* page);

  const KvLayout layout_;
  const std::shared_ptr<StoreConnection> connection_;  // shared with the process's other sequences
  PageMemory& memory_;
  PageMover& mover_;
  const StorePagesOptions options_;
  absl::StatusOr<client::Namespace> namespace_ = absl::UnavailableError("nothing asked yet");
  std::optional<client::Lease> lease_;
  std::vector<BlockHash> hashes_;  // of the sequence so far, [blocks]
  std::vector<LoadedBlock> loaded_;
  std::vector<PageMemory::Page> private_pages_;
  std::map<int64_t, const std::byte*> new_pages_;  // by block index, of private_pages_
  absl::Time load_by_;
  std::unique_ptr<PageMover::Load> loading_;  // reads lease_ and loaded_: null before they change
  std::optional<PageSaver> saver_;
  bool is_checked_ = false;  // every loaded byte
  bool is_finished_ = false;
  PrefixLoad load_;
  std::map<std::string, int64_t> save_failures_;
};

}  // namespace kvstore::engine
