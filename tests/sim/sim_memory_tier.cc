#include "tests/sim/sim_memory_tier.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "transfer/memory/page_codec.h"

namespace kvstore::sim {

std::shared_ptr<MappedSlab> Mappings::Make(size_t bytes) {
  auto slab = std::make_shared<MappedSlab>();
  slab->data.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
  std::memset(slab->data.get(), 0, bytes);
  slab->bytes = bytes;
  slab->generations.resize(bytes / 4096);
  slab->number = ++last_number_;
  Add(slab);
  return slab;
}

void Mappings::Add(const std::shared_ptr<MappedSlab>& slab) {
  slabs_[slab->data.get()] = slab;
  in_order_.push_back(slab);
}

KeptMachineMemory::Snapshot KeptMachineMemory::Take() const {
  Snapshot snapshot{.ledger = ledger, .slabs = {}};
  for (const auto& [id, slab] : slabs) {
    const std::byte* const data = slab->data.get();
    snapshot.slabs[id] = {slab, {data, data + slab->bytes}, slab->generations};
  }
  return snapshot;
}

void KeptMachineMemory::Restore(const Snapshot& snapshot) {
  ledger = snapshot.ledger;
  slabs.clear();
  for (const auto& [id, saved] : snapshot.slabs) {
    std::memcpy(saved.slab->data.get(), saved.data.data(), saved.data.size());
    saved.slab->generations = saved.generations;
    slabs[id] = saved.slab;
  }
}

uint64_t Mappings::GenerationAt(const std::byte* address) const {
  const MappedSlab& slab = *SlabAt(address);
  return slab.generations[static_cast<size_t>(address - slab.data.get()) / 4096];
}

std::byte* Mappings::RandomByte(Random& random) {
  const MappedSlab& slab = *in_order_[random.Below(static_cast<uint32_t>(in_order_.size()))];
  return slab.data.get() + random.Below(static_cast<uint32_t>(slab.bytes));
}

// Closed except inside Settle(). Thread-safe.
class SimMemoryTier::Gate {
 public:
  void Set(bool is_open) {
    absl::MutexLock lock(&mutex_);
    is_open_ = is_open;
  }
  void Pass() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&is_open_));
  }
  void CountReplacement() { ++replaced_; }
  bool TakeReplacements() { return std::exchange(replaced_, 0) > 0; }

 private:
  absl::Mutex mutex_;
  bool is_open_ = false;
  int replaced_ = 0;  // simulation's thread only
};

class SimMemoryTier::Slab final : public tiers::SlabMemory {
 public:
  Slab(std::shared_ptr<MappedSlab> memory, std::shared_ptr<Gate> gate)
      : memory_(std::move(memory)), gate_(std::move(gate)) {}
  std::byte* host_data() const override { return memory_->data.get(); }
  uint64_t bytes() const override { return memory_->bytes; }
  void StoreGeneration(uint64_t slot_offset, uint64_t generation) override {
    memory_->generations[slot_offset / 4096] = generation;
  }
  absl::Status Prepare(uint64_t, uint64_t) const override { return absl::OkStatus(); }
  void Discard() override {
    gate_->Pass();
    std::memset(memory_->data.get(), 0, memory_->bytes);
  }
  void MoveGenerationsTo(uint64_t generation) override {
    for (uint64_t& cell : memory_->generations) cell = cell == 0 ? 0 : generation;
  }
  tiers::SlabMark mark() const override { return {memory_->number, memory_->number}; }
  const std::shared_ptr<MappedSlab>& mapped() const { return memory_; }
  absl::StatusOr<tiers::SlabExport> Export(MemoryAccess) const override {
    return absl::UnimplementedError("simulated clients have it mapped");
  }

 private:
  const std::shared_ptr<MappedSlab> memory_;
  const std::shared_ptr<Gate> gate_;
};

// Copies when an operation completes, by the real codec.
class SimMemoryTier::Mover final : public tiers::SlotMover {
 public:
  Mover(const Options& options, Executor& executor, const Clock& clock, Random& random)
      : inflight_max_(options.inflight_max),
        faults_(options.faults),
        executor_(executor),
        clock_(clock),
        random_(random) {}
  ~Mover() override { Mover::Stop(); }

  void Write(const tiers::SlabPlace& to, const PageIdentity& identity, ConstRegion src,
             absl::Time deadline, Done done) override {
    Start(to.memory, to.memory->host_data() + to.offset, src.data, identity, deadline,
          std::move(done));
  }
  void Read(const tiers::SlabPlace& from, const PageIdentity& expect, MutableRegion dst,
            absl::Time deadline, Done done) override {
    Start(from.memory, dst.data, from.memory->host_data() + from.offset, expect, deadline,
          std::move(done));
  }
  void Fail(absl::Status status, Done done) override {
    Add({.status = std::move(status), .done = std::move(done)}, clock_.Now());
  }
  size_t inflight_max() const override { return inflight_max_; }
  size_t in_flight() const override { return operations_.size(); }
  void Stop() override {
    while (!operations_.empty()) {
      Operation operation = std::move(operations_.begin()->second);
      operations_.erase(operations_.begin());
      operation.done(absl::UnavailableError("stopped"));
    }
    *is_alive_ = false;
  }
  void set_faults(const MemoryFaults& faults) { faults_ = faults; }

 private:
  struct Operation {
    std::shared_ptr<tiers::SlabMemory> memory;
    std::byte* dst = nullptr;
    const std::byte* src = nullptr;
    PageIdentity identity;
    absl::Status status;  // an error: reported, nothing or a part is copied
    Done done;
  };

  void Start(const std::shared_ptr<tiers::SlabMemory>& memory, std::byte* dst, const std::byte* src,
             const PageIdentity& identity, absl::Time deadline, Done done) {
    Operation operation{memory, dst, src, identity, absl::OkStatus(), std::move(done)};
    absl::Time when = clock_.Now() + absl::Microseconds(20) + random_.UpTo(absl::Milliseconds(1));
    if (operations_.size() >= inflight_max_) {
      operation.status = absl::ResourceExhaustedError("queue is full");
      operation.dst = nullptr;
    } else if (random_.Chance(faults_.failed)) {
      operation.status = absl::UnavailableError("simulated");
    } else if (random_.Chance(faults_.differs)) {
      operation.status = absl::DataLossError("simulated");
    } else if (random_.Chance(faults_.late)) {
      when += random_.UpTo(absl::Seconds(3));
    }
    if (when > deadline) {
      when = deadline;
      operation.status = absl::DeadlineExceededError("simulated");
    }
    Add(std::move(operation), when);
  }
  void Add(Operation operation, absl::Time when) {
    const uint64_t id = ++last_id_;
    operations_.emplace(id, std::move(operation));
    executor_.PostAt(when, [this, id, alive = is_alive_] {
      if (*alive) Complete(id);
    });
  }
  void Complete(uint64_t id) {
    auto it = operations_.find(id);
    Operation operation = std::move(it->second);
    operations_.erase(it);
    if (operation.status.ok()) {
      operation.status = transfer::CopySlot(operation.dst, operation.src, operation.identity);
    } else if (operation.dst != nullptr) {  // torn
      std::memcpy(operation.dst, operation.src,
                  random_.Below(static_cast<uint32_t>(operation.identity.shape.slot_bytes())));
    }
    operation.done(std::move(operation.status));
  }

  const size_t inflight_max_;
  MemoryFaults faults_;
  Executor& executor_;
  const Clock& clock_;
  Random& random_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Operation> operations_;
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);  // for tasks that outlive us
};

// The real ledger in memory that outlives the daemon; somebody who keeps slabs by their ids.
struct SimMemoryTier::Kept final : public tiers::SlabKeeper {
  Kept(KeptMachineMemory& machine_memory, tiers::SlabLedger of)
      : memory(machine_memory), ledger(std::move(of)) {}

  static std::shared_ptr<Kept> Open(const Options& options, KeptMachineMemory& memory) {
    tiers::SlabLedger::Geometry geometry{.slab_bytes = options.slab_bytes,
                                         .num_slabs = options.num_slabs,
                                         .metadata_bytes = 16 << 10};
    const uint64_t bytes = tiers::SlabLedger::BytesFor(geometry);
    const bool is_new = memory.ledger.empty();
    memory.ledger.resize(bytes / sizeof(uint64_t));
    auto* const data = reinterpret_cast<std::byte*>(memory.ledger.data());
    if (is_new) return std::make_shared<Kept>(memory, tiers::SlabLedger::Format(data, geometry, 1));
    auto attached = tiers::SlabLedger::Attach(data, bytes, geometry);
    return attached.ok() ? std::make_shared<Kept>(memory, *std::move(attached)) : nullptr;
  }
  absl::Status Keep(uint32_t slab_id, const tiers::SlabMemory& slab) override {
    memory.slabs[slab_id] = static_cast<const Slab&>(slab).mapped();
    return absl::OkStatus();
  }
  void Forget(uint32_t slab_id) override { memory.slabs.erase(slab_id); }

  std::vector<tiers::RestoredSlab> Restore(uint32_t num_slabs, uint64_t generation_base,
                                           Mappings& mappings, const std::shared_ptr<Gate>& gate) {
    std::vector<tiers::RestoredSlab> restored(num_slabs);
    for (uint32_t index = 0; index < num_slabs; ++index) {
      const auto record = ledger.ReadSlab(index);
      if (!record.has_value()) continue;
      restored[index].id = record->id;
      const auto found = memory.slabs.find(record->id);
      if (found == memory.slabs.end() || found->second->number != record->mark.slab) continue;
      mappings.Add(found->second);
      auto slab = std::make_unique<Slab>(found->second, gate);
      slab->MoveGenerationsTo(generation_base);
      restored[index] = {.id = record->id, .memory = std::move(slab), .tenant = record->tenant};
    }
    return restored;
  }

  KeptMachineMemory& memory;
  tiers::SlabLedger ledger;
};

SimMemoryTier::SimMemoryTier(tiers::TierKind kind, std::unique_ptr<tiers::SlabPages> pages,
                             std::unique_ptr<Mover> mover, Mover* sim_mover,
                             std::shared_ptr<Gate> gate, Failpoints& failpoints, MakeKept make_kept)
    : MemoryTier(std::move(pages), std::move(mover), std::move(make_kept)),
      kind_(kind),
      sim_mover_(sim_mover),
      failpoints_(failpoints),
      gate_(std::move(gate)) {}

// The background thread may wait at the gate, and MemoryTier waits for it.
SimMemoryTier::~SimMemoryTier() { gate_->Set(true); }

std::unique_ptr<SimMemoryTier> SimMemoryTier::Make(const Options& options, Executor& executor,
                                                   const Clock& clock, Mappings& mappings,
                                                   Random& random, Failpoints& failpoints,
                                                   KeptMachineMemory* machine_memory) {
  auto gate = std::make_shared<Gate>();
  tiers::SlabPages::Options pages{.name = "sim-slabs",
                                  .num_slabs = options.num_slabs,
                                  .slab_bytes = options.slab_bytes,
                                  .prepare = tiers::Prepare::kWhenUsed};
  // Lives as long as the pages: their make_slab has it.
  std::shared_ptr<Kept> kept;
  std::vector<bool> is_restored;
  if (machine_memory != nullptr) {
    kept = Kept::Open(options, *machine_memory);
    if (kept == nullptr) return nullptr;
    pages.ledger = &kept->ledger;
    pages.keeper = kept.get();
    pages.generation_base = uint64_t{*kept->ledger.CountStart()} << 32;
    pages.restored = kept->Restore(options.num_slabs, pages.generation_base, mappings, gate);
    for (const tiers::RestoredSlab& slab : pages.restored)
      is_restored.push_back(slab.memory != nullptr);
  }
  pages.make_slab =
      [&mappings, gate, kept,
       bytes = options.slab_bytes]() -> absl::StatusOr<std::unique_ptr<tiers::SlabMemory>> {
    gate->CountReplacement();
    return std::make_unique<Slab>(mappings.Make(bytes), gate);
  };
  auto slab_pages = tiers::SlabPages::Create(std::move(pages), clock);
  if (!slab_pages.ok()) return nullptr;
  gate->TakeReplacements();
  auto mover = std::make_unique<Mover>(options, executor, clock, random);
  Mover* const raw = mover.get();
  MakeKept make_kept;
  if (kept != nullptr) {
    make_kept = [&](tiers::SlabPages& of) {
      return std::make_unique<tiers::KeptPages>(
          tiers::KeptPages::Options{.hold_time = options.hold_time}, is_restored, of, kept->ledger,
          executor, clock);
    };
  }
  return std::unique_ptr<SimMemoryTier>(new SimMemoryTier(options.kind, *std::move(slab_pages),
                                                          std::move(mover), raw, std::move(gate),
                                                          failpoints, std::move(make_kept)));
}

void SimMemoryTier::Release(PageId page) {
  if (durable() != nullptr) failpoints_.Pass(Failpoint::kMidFree);
  MemoryTier::Release(page);
}

void SimMemoryTier::NotePublished(PageId page, const PageIdentity& identity) {
  failpoints_.Pass(Failpoint::kBeforeNote);
  MemoryTier::NotePublished(page, identity);
  failpoints_.Pass(Failpoint::kAfterNote);
}

void SimMemoryTier::Settle() {
  if (!gate_->TakeReplacements()) return;
  gate_->Set(true);
  WaitUntilPrepared();
  gate_->Set(false);
}

void SimMemoryTier::Stop() {
  gate_->Set(true);
  MemoryTier::Stop();
}

void SimMemoryTier::set_faults(const MemoryFaults& faults) { sim_mover_->set_faults(faults); }

}  // namespace kvstore::sim
