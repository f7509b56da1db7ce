// P9: what a block costs the core thread, and what it costs in memory.
#include <malloc.h>

#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/index/prefix_index.h"
#include "kvstore/policy/leaf_lru.h"
#include "kvstore/store/slab_map.h"
#include "kvstore/store/store.h"
#include "tools/kvbench/null_tier.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/stopwatch.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {
namespace {

using store::TierKind;

constexpr size_t kChainBlocks = 2048;  // of one prompt: 32,768 tokens in blocks of 16
constexpr size_t kPartBlocks = 64;     // that an engine saves at a time while it prefills
constexpr double kNanoseconds = 1e9;

NamespaceSpec Spec() {
  NamespaceSpec spec;
  spec.model = "kvbench";
  spec.weights_revision = "1";
  spec.kv_dtype = "bf16";
  spec.numerics = "none";
  spec.block_tokens = 16;
  spec.shape = {.num_slices = 1, .slice_bytes = 4096};
  return spec;
}

size_t HeapBytes() {
  const struct mallinfo2 heap = mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

// A store on this thread, whose tiers hold `num_blocks` each.
class Core {
 public:
  Core(std::vector<TierKind> kinds, uint64_t num_blocks) : slot_bytes_(Spec().shape.slot_bytes()) {
    store::Store::Tiers tiers;
    for (const TierKind kind : kinds) {
      auto& tier = tiers_.emplace_back(
          std::make_unique<NullTier>(kind, num_blocks * slot_bytes_, executor_));
      if (kind == TierKind::kGpu) tiers.gpu = tier.get();
      if (kind == TierKind::kDram) tiers.dram = tier.get();
      if (kind == TierKind::kNvme) tiers.nvme = tier.get();
    }
    save_tier_ = kinds.front();
    store_ = std::make_unique<store::Store>(store::StoreOptions{}, tiers, executor_, clock_);
  }

  absl::Status Open() {
    absl::Status status = absl::UnknownError("the store did not answer");
    store_->Start([](absl::Status) {});
    store_->OpenNamespace(Spec(), "kvbench", [&](auto opened) {
      status = opened.status();
      if (opened.ok()) ns_ = opened->id;
    });
    executor_.RunUntilIdle();
    RETURN_IF_ERROR(status);
    ASSIGN_OR_RETURN(session_, store_->OpenSession(Spec().tenant));
    return absl::OkStatus();
  }

  // Reserves and publishes the blocks, `part_blocks` at a time, in the hottest tier.
  absl::Status Save(std::span<const BlockHash> chain, size_t part_blocks) {
    std::optional<BlockHash> parent;
    for (size_t at = 0; at < chain.size(); at += part_blocks) {
      const auto part = chain.subspan(at, std::min(part_blocks, chain.size() - at));
      ASSIGN_OR_RETURN(auto reserved, ReserveAll(parent, static_cast<uint32_t>(at), part));
      commit_.clear();
      for (uint32_t i = 0; i < part.size(); ++i) {
        commit_.push_back({.block = i, .page_checksum = part[i].Prefix64()});
      }
      RETURN_IF_ERROR(store_->Commit(session_, reserved.reservation, commit_));
      executor_.RunUntilIdle();
      parent = part.back();
    }
    return absl::OkStatus();
  }

  // Match, touch, lease, locations, and release.
  absl::Status Load(std::span<const BlockHash> chain) {
    LeaseId lease;
    size_t ready = 0;
    store_->Acquire(session_, ns_, chain, {}, [&](const store::AcquireUpdate& update) {
      lease = update.lease;
      ready += update.ready.size();
    });
    if (ready != chain.size()) {
      return absl::InternalError(absl::StrCat(ready, " of ", chain.size(), " blocks were found"));
    }
    absl::Status status = store_->Release(session_, lease, {});
    executor_.RunUntilIdle();
    return status;
  }

  absl::Status Match(std::span<const BlockHash> chain) {
    if (store_->Match(ns_, chain).matched_blocks == chain.size()) return absl::OkStatus();
    return absl::InternalError("a chain was not matched");
  }

  store::StoreStatus status() const { return store_->status(); }

  uint64_t next_chain = 0;  // that was never saved
  uint64_t refusals = 0;    // Reserve() found no space although every block may be evicted

 private:
  static constexpr int kTriesMax = 1000;

  std::string Stuck() const {
    std::string text = absl::StrCat("Reserve() finds no space after ", kTriesMax, " tries:");
    for (const store::TierRow& row : store_->status().tiers) {
      absl::StrAppend(&text, " ", std::string(tiers::TierName(row.kind)), " holds ",
                      row.stats.used_pages, " pages, evicted ", row.counters.evicted_pages,
                      ", failed moves ", row.counters.move_failures, ";");
    }
    return text;
  }
  // Tries again where there is no space: a client would skip the save.
  absl::StatusOr<store::ReserveResult> ReserveAll(std::optional<BlockHash> parent, uint32_t first,
                                                  std::span<const BlockHash> part) {
    for (int i = 0; i < kTriesMax; ++i) {
      ASSIGN_OR_RETURN(auto reserved,
                       store_->Reserve(session_, ns_, parent, first, part, save_tier_));
      if (reserved.blocks.back().state == store::ReserveState::kReserved) return reserved;
      ++refusals;
      if (reserved.reservation.value() != 0) {
        RETURN_IF_ERROR(store_->Abort(session_, reserved.reservation));
      }
      executor_.RunUntilIdle();
    }
    return absl::ResourceExhaustedError(Stuck());
  }

  MonotonicClock clock_;
  ManualExecutor executor_{clock_};
  const uint64_t slot_bytes_;
  std::vector<std::unique_ptr<NullTier>> tiers_;
  TierKind save_tier_{};
  std::unique_ptr<store::Store> store_;
  NamespaceId ns_;
  SessionId session_;
  std::vector<store::CommitBlock> commit_;
};

// Seconds of one dependent read of a random line among `num_lines`.
double RandomReadSeconds(size_t num_lines) {
  struct alignas(64) Line {
    uint32_t next = 0;
  };
  std::vector<Line> lines(num_lines);
  const std::vector<uint32_t> order = RandomOrder(num_lines, 5);
  for (size_t i = 0; i < num_lines; ++i) lines[order[i]].next = order[(i + 1) % num_lines];
  constexpr size_t kSteps = 500'000;
  uint32_t at = 0;
  const CpuStopwatch watch;
  for (size_t i = 0; i < kSteps; ++i) at = lines[at].next;
  const double seconds = watch.Seconds();
  // The result is used, so that the walk cannot be left out.
  return at == num_lines ? 0 : seconds / kSteps;
}

class Chains {
 public:
  explicit Chains(uint64_t num_blocks)
      : num_chains_(std::max<uint64_t>(1, num_blocks / kChainBlocks)) {}
  size_t size() const { return num_chains_; }
  std::vector<BlockHash> operator[](uint64_t i) const {
    return RandomHashes(kChainBlocks, 1000 + i * 7919);
  }

 private:
  const size_t num_chains_;
};

absl::Status Fill(Core& core, const Chains& chains) {
  for (size_t i = 0; i < chains.size(); ++i) {
    RETURN_IF_ERROR(core.Save(chains[core.next_chain++], kChainBlocks));
  }
  return absl::OkStatus();
}

// Nanoseconds a block of `call` on chains drawn at random, each repeat over as many as fill
// `share`.
template <typename Call>
absl::StatusOr<Sample> TimeChains(const Settings& settings, size_t count, uint64_t blocks_per_call,
                                  Call call) {
  Sample sample;
  for (int repeat = 0; repeat < settings.repeats; ++repeat) {
    double seconds = 0;
    for (size_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const double one, call(repeat, i));
      seconds += one;
    }
    sample.Add(seconds / static_cast<double>(count * blocks_per_call) * kNanoseconds);
  }
  return sample;
}

absl::Status MeasureLoads(const Settings& settings, Core& core, const Chains& chains,
                          const Ceiling& ceiling, Report& report) {
  RandomWords random(9);
  const size_t count = std::min<size_t>(chains.size() * 2, 200);
  const auto timed = [&](auto method) {
    return [&, method](int, size_t) -> absl::StatusOr<double> {
      const std::vector<BlockHash> chain = chains[random.Below(chains.size())];
      const CpuStopwatch watch;
      RETURN_IF_ERROR((core.*method)(chain));
      return watch.Seconds();
    };
  };
  ASSIGN_OR_RETURN(const Sample match,
                   TimeChains(settings, count, kChainBlocks, timed(&Core::Match)));
  Result result = MakeResult("index/match/2048", "ns", Better::kLower, match);
  result.ceiling = ceiling;
  report.Add(std::move(result));
  ASSIGN_OR_RETURN(const Sample load,
                   TimeChains(settings, count, kChainBlocks, timed(&Core::Load)));
  result = MakeResult("index/acquire/2048", "ns", Better::kLower, load);
  result.ceiling = ceiling;
  result.budget = Budget{.id = "P9", .on = Budget::On::kValue, .limit = 150};
  report.Add(std::move(result));
  return absl::OkStatus();
}

struct SaveCase {
  std::string name;
  size_t part_blocks;
};

// Saves into full tiers: every reserved block evicts another one.
absl::Status MeasureSaves(const Settings& settings, Core& core, const Chains& chains,
                          const Ceiling& ceiling, SaveCase save_case, Report& report) {
  uint64_t& next = core.next_chain;
  const size_t count = std::max<size_t>(1, chains.size() / 8);
  const auto save = [&](int, size_t) -> absl::StatusOr<double> {
    const std::vector<BlockHash> chain = chains[next++];
    const CpuStopwatch watch;
    RETURN_IF_ERROR(core.Save(chain, save_case.part_blocks));
    return watch.Seconds();
  };
  // Until every tier is full, and holds chains that were saved in this way.
  for (size_t i = 0; i <= chains.size(); ++i) RETURN_IF_ERROR(save(0, i).status());
  const uint64_t evicted_before = core.status().tiers.front().counters.evicted_pages;
  ASSIGN_OR_RETURN(const Sample sample, TimeChains(settings, count, kChainBlocks, save));
  const uint64_t evicted = core.status().tiers.front().counters.evicted_pages - evicted_before;
  const uint64_t saved = count * kChainBlocks * static_cast<uint64_t>(settings.repeats);
  if (evicted < saved * 9 / 10) {
    return absl::InternalError(absl::StrCat("only ", evicted, " of ", saved, " saves evicted"));
  }
  Result result = MakeResult(absl::StrCat("index/", save_case.name), "ns", Better::kLower, sample);
  result.ceiling = ceiling;
  result.budget = Budget{.id = "P9", .on = Budget::On::kValue, .limit = 600};
  report.Add(std::move(result));
  if (core.refusals > 0) {
    report.AddNote(absl::StrCat("index/", save_case.name, ": Reserve() found no space ",
                                core.refusals, " times although every block could be evicted"));
  }
  return absl::OkStatus();
}

// Bytes a resident block takes in the index, the eviction orders and the slab maps, all tiers in
// use.
double StructureBytes(uint64_t num_blocks, const std::array<bool, index::kNumTiers>& in_use) {
  index::PrefixIndex index(1, in_use);
  std::array<policy::LeafLru, index::kNumTiers> orders;
  std::array<store::SlabMap, index::kNumTiers> slabs;
  constexpr uint32_t kSlabSlots = 4096;
  const NamespaceId ns(1);
  const PoolId pool(1);
  const Chains chains(num_blocks);
  for (uint64_t c = 0; c < chains.size(); ++c) {
    index::NodeId parent = index::kNoNode;
    uint32_t position = 0;
    for (const BlockHash& hash : chains[c]) {
      const index::NodeId node = index.FindOrInsert(ns, hash, parent, position++);
      for (size_t tier = 0; tier < index::kNumTiers; ++tier) {
        if (!in_use[tier]) continue;
        const PageId page{.slab = node / kSlabSlots, .slot = node % kSlabSlots, .generation = 1};
        slabs[tier].Take(page, pool, node);
        index.BeginWrite(node, tier, page);
        index.Publish(node, tier);
        orders[tier].InsertNewest(pool, node);
      }
      parent = node;
    }
  }
  size_t bytes = index.memory_bytes();
  for (const policy::LeafLru& order : orders) bytes += order.memory_bytes();
  for (const store::SlabMap& map : slabs) bytes += map.memory_bytes();
  return static_cast<double>(bytes) / static_cast<double>(index.num_nodes());
}

void MeasureMemory(const Settings& settings, Report& report) {
  const std::pair<const char*, std::array<bool, index::kNumTiers>> cases[] = {
      {"dram+nvme", {false, true, true}}, {"gpu+dram+nvme", {true, true, true}}};
  for (const auto& [tiers, in_use] : cases) {
    Result result = MakeResult(absl::StrCat("index/memory/", tiers), "B", Better::kLower,
                               StructureBytes(settings.index_blocks, in_use));
    result.budget = Budget{.id = "P9", .on = Budget::On::kValue, .limit = 160};
    report.Add(std::move(result));
  }
}

}  // namespace

absl::Status RunIndexSuite(const Settings& settings, Report& report) {
  const Chains chains(settings.index_blocks);
  const uint64_t num_blocks = chains.size() * kChainBlocks;
  report.AddNote(
      absl::StrCat(num_blocks, " resident blocks in chains of ", kChainBlocks,
                   "; times are CPU time of the one thread, for one block; tiers without bytes"));
  ShowProgress("memory of the index");
  MeasureMemory(settings, report);
  Sample reads;
  for (int i = 0; i < settings.repeats; ++i)
    reads.Add(RandomReadSeconds(num_blocks) * kNanoseconds);
  const Ceiling ceiling{
      .value = reads.Median(),
      .name = absl::StrCat("one dependent read of a random line of ", SizeName(num_blocks * 64))};
  {
    ShowProgress("loads and saves, DRAM only");
    Core core({TierKind::kDram}, num_blocks);
    RETURN_IF_ERROR(core.Open());
    RETURN_IF_ERROR(Fill(core, chains));
    RETURN_IF_ERROR(MeasureLoads(settings, core, chains, ceiling, report));
    RETURN_IF_ERROR(MeasureSaves(settings, core, chains, ceiling,
                                 {"reserve_commit_evict/2048", kChainBlocks}, report));
    RETURN_IF_ERROR(MeasureSaves(settings, core, chains, ceiling,
                                 {"reserve_commit_evict/64", kPartBlocks}, report));
  }
  ShowProgress("saves, DRAM and NVMe, written through");
  const size_t heap_before = HeapBytes();
  Core core({TierKind::kDram, TierKind::kNvme}, num_blocks);
  RETURN_IF_ERROR(core.Open());
  RETURN_IF_ERROR(Fill(core, chains));
  report.Add(
      MakeResult("index/heap/dram+nvme", "B", Better::kLower,
                 static_cast<double>(HeapBytes() - heap_before) / static_cast<double>(num_blocks)));
  report.AddNote("index/heap is all that the core allocates, slot tables of the tiers included");
  return MeasureSaves(settings, core, chains, ceiling,
                      {"reserve_commit_evict_through/2048", kChainBlocks}, report);
}

}  // namespace kvstore::bench
