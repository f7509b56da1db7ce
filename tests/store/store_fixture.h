// A store on virtual time over three faulty tiers, and the few things that every test of it does.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/store/store.h"
#include "tests/support/faulty_tier.h"

namespace kvstore::tests {

using store::AcquireUpdate;
using store::TierKind;

// One page of 64 bytes in a slot of 4096.
inline NamespaceSpec TestSpec(const std::string& model, const std::string& tenant = "default") {
  NamespaceSpec s;
  s.model = model;
  s.kv_dtype = "bf16";
  s.block_tokens = 1;
  s.shape = {.num_slices = 1, .slice_bytes = 64};
  s.tenant = tenant;
  return s;
}

// A chain of `n` blocks; different `branch`es share the first `shared` blocks.
inline std::vector<BlockHash> Chain(const Fingerprint& f, uint32_t branch, size_t n,
                                    size_t shared = 0) {
  std::vector<uint32_t> tokens(n);
  for (size_t i = 0; i < n; ++i) tokens[i] = i < shared ? 0 : branch + 1;
  return HashBlocks(RootHash(f), tokens, 1);
}

// The bytes that a block must hold stand for all: its checksum is its content (FaultyTier).
inline uint64_t ContentOf(const BlockHash& hash) { return hash.Prefix64() | 1; }
inline bool HasContent(const std::byte* slot, const BlockHash& hash) {
  const uint64_t content = ContentOf(hash);
  return std::memcmp(slot, &content, sizeof content) == 0;
}

struct StoreFixture {
  struct Options {
    FaultyTier::Options gpu{.kind = TierKind::kGpu};
    FaultyTier::Options dram{.kind = TierKind::kDram};
    FaultyTier::Options nvme{.kind = TierKind::kNvme, .num_slabs = 16};
    store::StoreOptions store;
    bool has_gpu = true;
    bool has_nvme = true;
  };

  explicit StoreFixture(Options o, uint64_t seed = 1)
      : options(o),
        gpu(o.gpu, executor, clock, seed),
        dram(o.dram, executor, clock, seed + 1),
        nvme(o.nvme, executor, clock, seed + 2) {
    core =
        std::make_unique<store::Store>(options.store,
                                       store::Store::Tiers{options.has_gpu ? &gpu : nullptr, &dram,
                                                           options.has_nvme ? &nvme : nullptr},
                                       executor, clock);
  }
  StoreFixture() : StoreFixture(Options{}) {}

  // Runs everything that is queued or will be, except what waits longer than `horizon`.
  void Settle(absl::Duration horizon = absl::Seconds(5)) {
    const absl::Time end = clock.Now() + horizon;
    executor.RunUntilIdle();
    while (executor.NextTimer() <= end) {
      clock.Advance(std::max(absl::ZeroDuration(), executor.NextTimer() - clock.Now()));
      executor.RunUntilIdle();
    }
  }

  store::Store::OpenedNamespace Open(const NamespaceSpec& spec, const std::string& name = "") {
    absl::StatusOr<store::Store::OpenedNamespace> opened = absl::InternalError("not called");
    core->OpenNamespace(spec, name, [&](auto result) { opened = std::move(result); });
    Settle(absl::ZeroDuration());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *opened;
  }

  // Reserves, fills and commits a whole prefix. Returns how many blocks were published.
  size_t Put(SessionId session, NamespaceId ns, const std::vector<BlockHash>& hashes,
             TierKind tier = TierKind::kDram) {
    const auto reserved = core->Reserve(session, ns, std::nullopt, 0, hashes, tier);
    if (!reserved.ok()) return 0;
    std::vector<store::CommitBlock> commit;
    for (uint32_t i = 0; i < hashes.size(); ++i) {
      if (reserved->blocks[i].state != store::ReserveState::kReserved) continue;
      const uint64_t content = ContentOf(hashes[i]);
      std::memcpy(reserved->blocks[i].location.address, &content, sizeof content);
      commit.push_back({.block = i, .page_checksum = content});
    }
    if (commit.empty()) return 0;
    EXPECT_TRUE(core->Commit(session, reserved->reservation, commit).ok());
    return commit.size();
  }

  Options options;
  ManualClock clock;
  ManualExecutor executor{clock};
  FaultyTier gpu, dram, nvme;
  std::unique_ptr<store::Store> core;
};

// Collects the updates of one Acquire.
struct Acquired {
  void operator()(const AcquireUpdate& update) {
    EXPECT_FALSE(is_last) << "an update after the last one";
    EXPECT_EQ(update.is_first, num_updates == 0);
    ++num_updates;
    if (update.is_first) lease = update.lease;
    matched_blocks = update.matched_blocks;
    ready.insert(ready.end(), update.ready.begin(), update.ready.end());
    if (!update.status.ok()) status = update.status;
    is_last = update.is_last;
  }
  std::function<void(const AcquireUpdate&)> Observer() {
    return [this](const AcquireUpdate& update) { (*this)(update); };
  }

  LeaseId lease;
  uint32_t matched_blocks = 0;
  std::vector<AcquireUpdate::Ready> ready;
  absl::Status status;
  bool is_last = false;
  int num_updates = 0;
};

}  // namespace kvstore::tests
