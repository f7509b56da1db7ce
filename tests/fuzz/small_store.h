// A store on virtual time with one DRAM tier in plain memory, and a prefix of which the first blocks
// are published. The same in every run.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kvstore/base/block_hasher.h"
#include "kvstore/store/store.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/faulty_tier.h"

namespace kvstore::fuzz {

class SmallStore {
 public:
  static constexpr uint32_t kBlocks = 8, kPublished = 5;

  SmallStore() {
    NamespaceSpec spec;
    spec.model = "fuzz";
    spec.kv_dtype = "bf16";
    spec.block_tokens = 1;
    spec.shape = {.num_slices = 1, .slice_bytes = 64};
    store_->OpenNamespace(spec, "fuzz", [this](absl::StatusOr<store::Store::OpenedNamespace> ns) {
      REQUIRE(ns.ok());
      ns_ = *std::move(ns);
    });
    Settle();
    const std::vector<uint32_t> tokens(kBlocks, 7);
    chain_ = HashBlocks(RootHash(ns_.fingerprint), tokens, 1);
    Publish();
  }

  void Settle() { executor_.RunUntilIdle(); }
  store::Store& store() { return *store_; }
  const store::Store& store() const { return *store_; }
  const store::Store::OpenedNamespace& ns() const { return ns_; }
  const std::vector<BlockHash>& chain() const { return chain_; }
  // What stands for a block's bytes, and for their checksum.
  static uint64_t ContentOf(const BlockHash& hash) { return hash.Prefix64() | 1; }

 private:
  void Publish() {
    const SessionId writer = *store_->OpenSession("default");
    const auto reserved =
        store_->Reserve(writer, ns_.id, std::nullopt, 0, std::span(chain_).first(kPublished),
                        store::TierKind::kDram);
    REQUIRE(reserved.ok());
    std::vector<store::CommitBlock> commit;
    for (uint32_t i = 0; i < kPublished; ++i) {
      const uint64_t content = ContentOf(chain_[i]);
      std::memcpy(reserved->blocks[i].location.address, &content, sizeof content);
      commit.push_back({.block = i, .page_checksum = content});
    }
    REQUIRE(store_->Commit(writer, reserved->reservation, commit).ok());
    Settle();
    store_->CloseSession(writer);
  }

  ManualClock clock_;
  ManualExecutor executor_{clock_};
  tests::FaultyTier dram_{{.kind = store::TierKind::kDram, .num_slabs = 2, .slab_bytes = 16 * 4096},
                          executor_,
                          clock_,
                          1};
  std::unique_ptr<store::Store> store_ = std::make_unique<store::Store>(
      store::StoreOptions{}, store::Store::Tiers{nullptr, &dram_, nullptr}, executor_, clock_);
  store::Store::OpenedNamespace ns_;
  std::vector<BlockHash> chain_;
};

}  // namespace kvstore::fuzz
