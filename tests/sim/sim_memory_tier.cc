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
  slabs_[slab->data.get()] = slab;
  in_order_.push_back(slab);
  return slab;
}

uint64_t Mappings::GenerationAt(const std::byte* address) const {
  const MappedSlab& slab = *std::prev(slabs_.upper_bound(address))->second;
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

SimMemoryTier::SimMemoryTier(tiers::TierKind kind, std::unique_ptr<tiers::SlabPages> pages,
                             std::unique_ptr<Mover> mover, Mover* sim_mover,
                             std::shared_ptr<Gate> gate)
    : MemoryTier(std::move(pages), std::move(mover)),
      kind_(kind),
      sim_mover_(sim_mover),
      gate_(std::move(gate)) {}

// The background thread may wait at the gate, and MemoryTier waits for it.
SimMemoryTier::~SimMemoryTier() { gate_->Set(true); }

std::unique_ptr<SimMemoryTier> SimMemoryTier::Make(const Options& options, Executor& executor,
                                                   const Clock& clock, Mappings& mappings,
                                                   Random& random) {
  auto gate = std::make_shared<Gate>();
  tiers::SlabPages::Options pages{.name = "sim-slabs",
                                  .num_slabs = options.num_slabs,
                                  .slab_bytes = options.slab_bytes,
                                  .prepare = tiers::Prepare::kWhenUsed};
  pages.make_slab =
      [&mappings, gate,
       bytes = options.slab_bytes]() -> absl::StatusOr<std::unique_ptr<tiers::SlabMemory>> {
    gate->CountReplacement();
    return std::make_unique<Slab>(mappings.Make(bytes), gate);
  };
  auto slab_pages = tiers::SlabPages::Create(std::move(pages), clock);
  if (!slab_pages.ok()) return nullptr;
  gate->TakeReplacements();
  auto mover = std::make_unique<Mover>(options, executor, clock, random);
  Mover* const raw = mover.get();
  return std::unique_ptr<SimMemoryTier>(new SimMemoryTier(options.kind, *std::move(slab_pages),
                                                          std::move(mover), raw, std::move(gate)));
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
