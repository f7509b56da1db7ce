// The store against a simple reference model, over 100,000 random operations from a printed seed.
//
// The reference knows, for every block, whether it was ever committed in the present epoch of its
// namespace, and who is writing it. What the store may do beyond that (evict, lose a copy to a
// fault) only ever shortens a match, so with ample room and no faults the match must be exactly the
// reference's, and otherwise never longer. Bytes are checked when a page becomes readable and again
// when its lease ends.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "tests/store/store_fixture.h"

namespace kvstore::tests {
namespace {

using store::ReserveState;

constexpr int kNumOperations = 100'000;
constexpr size_t kChainBlocks = 24;
constexpr uint32_t kBranches = 40;

uint64_t Seed() {
  if (const char* text = std::getenv("KVSTORE_TEST_SEED")) return std::strtoull(text, nullptr, 10);
  return std::random_device{}();
}

class Model {
 public:
  Model(StoreFixture::Options options, bool is_exact, uint64_t seed)
      : f_(options, seed), random_(seed), is_exact_(is_exact) {
    for (const char* model : {"a", "b", "c"}) {
      NamespaceSpec spec = TestSpec(model);
      if (*model == 'c') spec.shape.slice_bytes = 5000;  // another size class
      namespaces_.push_back({f_.Open(spec), {}});
    }
  }

  void Run() {
    for (int i = 0; i < kNumOperations; ++i) {
      Step();
      if (testing::Test::HasFailure()) GTEST_FAIL() << "at operation " << i;
      if (i % 1000 == 0) {
        const absl::Status status = f_.core->CheckInvariants();
        ASSERT_TRUE(status.ok()) << status << " at operation " << i;
      }
    }
    Finish();
  }
  uint64_t num_matched() const { return num_matched_; }

 private:
  struct TestNamespace {
    store::Store::OpenedNamespace opened;
    std::set<BlockHash> committed;  // in the present epoch
  };
  struct Lease {
    SessionId session;
    std::vector<BlockHash> hashes;
    std::shared_ptr<Acquired> acquired;
    absl::Time since;
  };
  struct Reservation {
    SessionId session;
    size_t ns;
    uint64_t epoch_id;
    std::vector<BlockHash> hashes;
    store::ReserveResult result;
    std::set<uint32_t> open;
    absl::Time since;
  };

  uint32_t Random(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  TestNamespace& RandomNamespace() {
    return namespaces_[Random(static_cast<uint32_t>(namespaces_.size()))];
  }
  std::vector<BlockHash> RandomChain(const TestNamespace& ns) {
    const uint32_t branch = Random(kBranches);
    return Chain(ns.opened.fingerprint, branch, 1 + Random(kChainBlocks), branch % 8);
  }

  void Step() {
    const uint32_t what = Random(100);
    if (what < 3) {
      OpenSession();
    } else if (what < 4) {
      CloseSession();
    } else if (what < 24) {
      Acquire();
    } else if (what < 42) {
      Release();
    } else if (what < 60) {
      Reserve();
    } else if (what < 76) {
      CommitOrAbort();
    } else if (what < 84) {
      Match();
    } else if (what < 98) {
      Progress();
    } else if (Random(20) == 0) {
      Rare();
    }
  }

  void OpenSession() {
    if (sessions_.size() < 8) sessions_.push_back(*f_.core->OpenSession("default"));
  }

  // A client dies: everything that it holds goes with it.
  void CloseSession() {
    if (sessions_.empty()) return;
    const size_t i = Random(static_cast<uint32_t>(sessions_.size()));
    const SessionId session = sessions_[i];
    sessions_.erase(sessions_.begin() + i);
    f_.core->CloseSession(session);
    std::erase_if(leases_, [&](const Lease& lease) { return lease.session == session; });
    std::erase_if(reservations_, [&](const Reservation& r) { return r.session == session; });
  }

  void Acquire() {
    if (sessions_.empty()) return;
    TestNamespace& ns = RandomNamespace();
    Lease lease{.session = sessions_[Random(static_cast<uint32_t>(sessions_.size()))],
                .hashes = RandomChain(ns),
                .acquired = std::make_shared<Acquired>(),
                .since = f_.clock.Now()};
    const uint32_t expected = Expected(ns, lease.hashes);
    auto observer = [acquired = lease.acquired,
                     hashes = lease.hashes](const AcquireUpdate& update) {
      (*acquired)(update);
      for (const auto& ready : update.ready)
        EXPECT_TRUE(HasContent(ready.location.address, hashes[ready.block]));
    };
    f_.core->Acquire(lease.session, ns.opened.id, lease.hashes, {.can_read_gpu = Random(2) == 0},
                     observer);
    // Shorter only where another client is writing the DRAM copy of a block that lies in the GPU
    // tier alone.
    if (!absl::IsAlreadyExists(lease.acquired->status))
      CheckMatched(lease.acquired->matched_blocks, expected);
    num_matched_ += lease.acquired->matched_blocks;
    if (lease.acquired->lease.value() != 0) leases_.push_back(std::move(lease));
  }

  // What was readable must still be there when the lease ends.
  void Release() {
    if (leases_.empty()) return;
    const size_t i = Random(static_cast<uint32_t>(leases_.size()));
    const Lease lease = std::move(leases_[i]);
    leases_.erase(leases_.begin() + i);
    const bool is_alive = f_.clock.Now() < lease.since + f_.options.store.lease_time;
    if (is_alive) {
      for (const auto& ready : lease.acquired->ready) {
        EXPECT_TRUE(HasContent(ready.location.address, lease.hashes[ready.block]))
            << "a leased page was reused";
      }
    }
    std::vector<uint32_t> bad;
    if (Random(50) == 0)
      bad.push_back(Random(static_cast<uint32_t>(lease.hashes.size())));  // a false alarm
    const absl::Status status = f_.core->Release(lease.session, lease.acquired->lease, bad);
    EXPECT_TRUE(status.ok() || !is_alive) << status;
    const int updates = lease.acquired->num_updates;
    f_.executor.RunOne();
    EXPECT_EQ(lease.acquired->num_updates, updates) << "an update after Release()";
  }

  void Reserve() {
    if (sessions_.empty()) return;
    TestNamespace& ns = RandomNamespace();
    Reservation r{.session = sessions_[Random(static_cast<uint32_t>(sessions_.size()))],
                  .ns = static_cast<size_t>(&ns - namespaces_.data()),
                  .epoch_id = ns.opened.id.value(),
                  .hashes = RandomChain(ns),
                  .result = {},
                  .open = {},
                  .since = f_.clock.Now()};
    const TierKind tier = Random(3) == 0 ? TierKind::kGpu : TierKind::kDram;
    const auto result = f_.core->Reserve(r.session, ns.opened.id, std::nullopt, 0, r.hashes, tier);
    ASSERT_TRUE(result.ok()) << result.status();
    r.result = *result;
    for (uint32_t i = 0; i < r.hashes.size(); ++i) {
      const ReserveState state = r.result.blocks[i].state;
      if (tier == TierKind::kDram && is_exact_) {
        const bool may_reserve = !ns.committed.contains(r.hashes[i]);
        EXPECT_TRUE(may_reserve || state != ReserveState::kReserved) << "handed out again";
      }
      if (state != ReserveState::kReserved) continue;
      r.open.insert(i);
      const uint64_t content = ContentOf(r.hashes[i]);
      std::memcpy(r.result.blocks[i].location.address, &content, sizeof content);
    }
    if (!r.open.empty()) reservations_.push_back(std::move(r));
  }

  void CommitOrAbort() {
    if (reservations_.empty()) return;
    const size_t i = Random(static_cast<uint32_t>(reservations_.size()));
    Reservation& r = reservations_[i];
    TestNamespace& ns = namespaces_[r.ns];
    const bool is_alive = f_.clock.Now() < r.since + f_.options.store.lease_time;
    if (Random(5) == 0) {
      const absl::Status status = f_.core->Abort(r.session, r.result.reservation);
      EXPECT_TRUE(status.ok() || !is_alive) << status;
      r.open.clear();
    } else {
      std::vector<store::CommitBlock> blocks;
      for (const uint32_t block : r.open) {
        if (Random(8) != 0)
          blocks.push_back({.block = block, .page_checksum = ContentOf(r.hashes[block])});
      }
      const absl::Status status = f_.core->Commit(r.session, r.result.reservation, blocks);
      if (status.ok()) {
        EXPECT_EQ(r.epoch_id, ns.opened.id.value()) << "published into a cleared namespace";
        for (const auto& block : blocks) {
          ns.committed.insert(r.hashes[block.block]);
          r.open.erase(block.block);
        }
      } else {
        EXPECT_TRUE(!is_alive || r.epoch_id != ns.opened.id.value()) << status;
        r.open.clear();
      }
    }
    if (r.open.empty()) reservations_.erase(reservations_.begin() + i);
  }

  void Match() {
    TestNamespace& ns = RandomNamespace();
    const auto hashes = RandomChain(ns);
    CheckMatched(f_.core->Match(ns.opened.id, hashes).matched_blocks, Expected(ns, hashes));
  }

  void Progress() {
    if (Random(4) == 0) f_.clock.Advance(absl::Milliseconds(Random(30)));
    if (Random(2000) == 0) f_.clock.Advance(f_.options.store.lease_time);
    for (uint32_t n = Random(12); n > 0 && f_.executor.RunOne(); --n) {
    }
  }

  void Rare() {
    TestNamespace& ns = RandomNamespace();
    switch (Random(4)) {
      case 0:
        f_.core->Clear("default", ns.opened.fingerprint,
                       [](absl::Status status) { EXPECT_TRUE(status.ok()) << status; });
        ns.opened = *f_.core->FindNamespace("default", ns.opened.fingerprint);
        ns.committed.clear();
        break;
      case 1:
        f_.core->Evict(ns.opened.id, static_cast<TierKind>(Random(3)));
        break;
      case 2:
        f_.core->Verify(std::nullopt,
                        Random(2) ? store::VerifyMode::kRepair : store::VerifyMode::kDropBad,
                        [](auto) {});
        break;
      case 3:
        f_.nvme.set_state(Random(2) ? tiers::TierState::kReadOnly : tiers::TierState::kServing);
        break;
    }
  }

  uint32_t Expected(const TestNamespace& ns, const std::vector<BlockHash>& hashes) const {
    uint32_t n = 0;
    while (n < hashes.size() && ns.committed.contains(hashes[n])) ++n;
    return n;
  }

  void CheckMatched(uint32_t matched, uint32_t expected) {
    if (is_exact_) {
      EXPECT_EQ(matched, expected);
    } else {
      EXPECT_LE(matched, expected) << "matched a block that nobody committed";
    }
  }

  // Nothing may be left over when every client has gone.
  void Finish() {
    while (!sessions_.empty()) CloseSession();
    f_.nvme.set_state(tiers::TierState::kServing);
    f_.Settle(absl::Minutes(5));
    const store::StoreStatus status = f_.core->status();
    EXPECT_EQ(status.sessions + status.leases + status.reservations + status.moves_in_flight, 0u);
    EXPECT_EQ(f_.gpu.in_flight() + f_.dram.in_flight() + f_.nvme.in_flight(), 0u);
    std::map<TierKind, uint64_t> resident;
    for (const TestNamespace& ns : namespaces_) {
      for (const auto& row : f_.core->List(ns.opened.id, std::nullopt, SIZE_MAX)) {
        EXPECT_EQ(row.leases, 0u) << "a hold leaked";
        for (size_t t = 0; t < tiers::kNumTierKinds; ++t)
          resident[static_cast<TierKind>(t)] += row.resident[t];
      }
    }
    for (const FaultyTier* tier : {&f_.gpu, &f_.dram, &f_.nvme}) {
      EXPECT_EQ(tier->stats().used_pages, resident[tier->kind()])
          << tiers::TierName(tier->kind()) << " leaked pages";
    }
    const absl::Status invariants = f_.core->CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
  }

  StoreFixture f_;
  std::mt19937_64 random_;
  const bool is_exact_;
  std::vector<TestNamespace> namespaces_;
  std::vector<SessionId> sessions_;
  std::vector<Lease> leases_;
  std::vector<Reservation> reservations_;
  uint64_t num_matched_ = 0;
};

StoreFixture::Options AmpleRoom() {
  StoreFixture::Options o;
  o.gpu.num_slabs = o.dram.num_slabs = o.nvme.num_slabs = 200;
  return o;
}

StoreFixture::Options TightAndFaulty() {
  StoreFixture::Options o;
  o.gpu.num_slabs = 3;
  o.dram.num_slabs = 6;
  o.nvme.num_slabs = 12;
  o.gpu.slab_bytes = o.dram.slab_bytes = o.nvme.slab_bytes = 32 * 4096;
  for (FaultyTier::Options* tier : {&o.gpu, &o.dram, &o.nvme}) tier->fault_rate = 0.02;
  o.nvme.corruption_rate = 0.01;
  return o;
}

TEST(StoreModel, MatchesAreExactWithAmpleRoomAndNoFaults) {
  const uint64_t seed = Seed();
  RecordProperty("seed", std::to_string(seed));
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
  Model model(AmpleRoom(), true, seed);
  model.Run();
  EXPECT_GT(model.num_matched(), 10'000u) << "the run was too tame to show anything";
}

TEST(StoreModel, NoWrongByteAndNoLeakUnderPressureAndFaults) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
  Model model(TightAndFaulty(), false, seed);
  model.Run();
  EXPECT_GT(model.num_matched(), 1'000u) << "the run was too tame to show anything";
}

TEST(StoreModel, WriteBackUnderPressureAndFaults) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
  StoreFixture::Options options = TightAndFaulty();
  options.store.policy.write_to_dram = options.store.policy.write_to_nvme =
      policy::WriteMode::kBack;
  Model model(options, false, seed);
  model.Run();
  EXPECT_GT(model.num_matched(), 1'000u) << "the run was too tame to show anything";
}

}  // namespace
}  // namespace kvstore::tests
