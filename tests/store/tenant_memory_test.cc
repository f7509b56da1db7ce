// S7: memory that changes tenants, through the store and the real DRAM tier: no byte of the former
// tenant is in a page that the new one gets.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kvstore/store/store.h"
#include "tests/store/store_fixture.h"
#include "tiers/dram/dram_tier.h"

namespace kvstore::tests {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr uint32_t kSliceBytes = 60 << 10;  // slots of 64 KiB, 16 a slab

class TenantMemoryTest : public testing::Test {
 protected:
  struct User {
    std::byte mark;
    store::Store::OpenedNamespace opened;
    SessionId session;
  };

  User Join(const std::string& tenant, std::byte mark) {
    User user{.mark = mark, .opened = {}, .session = *core_.OpenSession(tenant)};
    NamespaceSpec spec = TestSpec("m", tenant);
    spec.shape.slice_bytes = kSliceBytes;
    core_.OpenNamespace(spec, "", [&](auto opened) { user.opened = *opened; });
    return user;
  }
  // Saves a prompt whose pages hold nothing but the user's mark, and counts what others left in
  // them.
  void Save(const User& user, uint32_t branch) {
    const auto hashes = Chain(user.opened.fingerprint, branch, 8);
    const auto reserved =
        core_.Reserve(user.session, user.opened.id, std::nullopt, 0, hashes, TierKind::kDram);
    ASSERT_TRUE(reserved.ok()) << reserved.status();
    std::vector<store::CommitBlock> commit;
    for (uint32_t i = 0; i < hashes.size(); ++i) {
      const store::ReserveResult::Block& block = reserved->blocks[i];
      if (block.state != store::ReserveState::kReserved) continue;
      std::byte* page = block.location.address;
      foreign_bytes_ += std::count_if(page, page + kSliceBytes, [&](std::byte b) {
        return b != std::byte{0} && b != user.mark;
      });
      ++pages_;
      std::memset(page, static_cast<int>(user.mark), kSliceBytes);
      commit.push_back({.block = i, .page_checksum = ContentOf(hashes[i])});
    }
    if (!commit.empty()) {
      ASSERT_TRUE(core_.Commit(user.session, reserved->reservation, commit).ok());
    }
    executor_.RunUntilIdle();
    tier_->WaitUntilPrepared();  // freed memory is free
  }

  MonotonicClock clock_;
  ManualExecutor executor_{clock_};
  std::unique_ptr<tiers::DramTier> tier_ =
      *tiers::DramTier::Create({.bytes = 6 * kSlab, .slab_bytes = kSlab}, executor_, clock_);
  store::Store core_{store::StoreOptions{}, {.dram = tier_.get()}, executor_, clock_};
  int64_t foreign_bytes_ = 0;
  uint64_t pages_ = 0;
};

TEST_F(TenantMemoryTest, NoForeignByteIsInAPageThatATenantGets) {
  const User users[] = {Join("a", std::byte{0xA1}), Join("b", std::byte{0xB2}),
                        Join("c", std::byte{0xC3})};
  for (uint32_t branch = 0; branch < 16; ++branch) Save(users[0], branch);
  for (uint32_t branch = 100; branch < 130; ++branch) {
    for (const User& user : users) Save(user, branch);
  }
  core_.Clear("b", users[1].opened.fingerprint, [](absl::Status) {});
  executor_.RunUntilIdle();
  const User newcomer = Join("d", std::byte{0xD4});
  for (uint32_t branch = 0; branch < 20; ++branch) Save(newcomer, branch);
  EXPECT_GE(core_.status().tiers[0].counters.reclaimed_slabs, 3u) << "memory did change tenants";
  EXPECT_GT(pages_, 500u);
  EXPECT_EQ(foreign_bytes_, 0);
  EXPECT_TRUE(core_.CheckInvariants().ok()) << core_.CheckInvariants();
}

}  // namespace
}  // namespace kvstore::tests
