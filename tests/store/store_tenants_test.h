// Tenants beside each other in one store, on virtual time: the fixture of store_tenants_test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/store/store_fixture.h"

namespace kvstore::tests {

inline constexpr uint64_t kSlotBytes = 4096;
inline constexpr uint32_t kSlabSlots = 64;

inline StoreFixture::Options DramOnly(uint32_t num_slabs) {
  StoreFixture::Options o;
  o.has_gpu = o.has_nvme = false;
  o.dram.num_slabs = num_slabs;
  return o;
}

class TenantsTest : public testing::Test {
 protected:
  struct User {
    store::Store::OpenedNamespace opened;
    SessionId session;
  };

  void Make(const StoreFixture::Options& options) { f = std::make_unique<StoreFixture>(options); }
  ~TenantsTest() override {
    const absl::Status status = f->core->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }
  User Join(const std::string& tenant, uint32_t slice_bytes = 64) {
    NamespaceSpec spec = TestSpec("m", tenant);
    spec.shape.slice_bytes = slice_bytes;
    return {.opened = f->Open(spec), .session = *f->core->OpenSession(tenant)};
  }
  std::vector<BlockHash> Prompt(const User& user, uint32_t branch, size_t n = 16) {
    return Chain(user.opened.fingerprint, branch, n);
  }
  size_t Put(const User& user, uint32_t branch, size_t n = 16) {
    f->clock.Advance(absl::Milliseconds(100));
    const size_t stored = f->Put(user.session, user.opened.id, Prompt(user, branch, n));
    f->executor.RunUntilIdle();
    return stored;
  }
  // As a client that computed the blocks anyway: asks again until they are stored.
  void PutAll(const User& user, uint32_t branch, size_t n = 16) {
    for (int i = 0; i < 100 && Matched(user, branch, n) < n; ++i) {
      Put(user, branch, n);
      f->Settle(absl::Milliseconds(100));
    }
    ASSERT_EQ(Matched(user, branch, n), n) << "branch " << branch;
  }
  uint32_t Matched(const User& user, uint32_t branch, size_t n = 16) {
    return f->core->Match(user.opened.id, Prompt(user, branch, n)).matched_blocks;
  }
  uint32_t MatchedOf(const User& user, uint32_t first, uint32_t end) {
    uint32_t matched = 0;
    for (uint32_t branch = first; branch < end; ++branch) matched += Matched(user, branch);
    return matched;
  }
  store::TenantRow Row(const std::string& tenant) {
    for (const store::TenantRow& row : f->core->ListTenants()) {
      if (row.name == tenant) return row;
    }
    ADD_FAILURE() << "no tenant " << tenant;
    return {};
  }
  store::TenantRow::InTier In(const std::string& tenant, TierKind kind = TierKind::kDram) {
    for (const store::TenantRow::InTier& in : Row(tenant).tiers) {
      if (in.kind == kind) return in;
    }
    return {};
  }
  absl::Status SetQuota(const std::string& tenant, uint64_t slots,
                        TierKind kind = TierKind::kDram) {
    absl::Status status = absl::UnknownError("not called");
    f->core->SetQuota(tenant, kind, slots * kSlotBytes, store::QuotaLife::kDurable,
                      [&](absl::Status s) { status = std::move(s); });
    f->executor.RunUntilIdle();
    return status;
  }
  std::unique_ptr<Acquired> Acquire(const User& user, uint32_t branch, size_t n = 16) {
    auto acquired = std::make_unique<Acquired>();
    f->core->Acquire(user.session, user.opened.id, Prompt(user, branch, n), {},
                     acquired->Observer());
    return acquired;
  }
  uint64_t ReclaimedSlabs() { return f->core->status().tiers.front().counters.reclaimed_slabs; }

  std::unique_ptr<StoreFixture> f;
};

}  // namespace kvstore::tests
