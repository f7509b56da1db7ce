#include "kvstore/service/caller.h"

#include <gtest/gtest.h>

namespace kvstore::service {
namespace {

const AccessList kAccess(/*own_uid=*/1000, /*allowed=*/{2000});

TEST(AccessList, StrangersMayNotConnect) { EXPECT_FALSE(kAccess.CallerOf(3000).has_value()); }

TEST(AccessList, OwnUidAndRootActForAnyTenant) {
  for (uid_t uid : {1000u, 0u}) {
    const Caller caller = *kAccess.CallerOf(uid);
    EXPECT_TRUE(caller.is_admin());
    EXPECT_EQ(*caller.TenantFor(""), "default");
    EXPECT_EQ(*caller.TenantFor("team-a"), "team-a");
  }
}

TEST(AccessList, AnotherAllowedUidIsItsOwnTenantOnly) {
  const Caller caller = *kAccess.CallerOf(2000);
  EXPECT_FALSE(caller.is_admin());
  EXPECT_EQ(*caller.TenantFor(""), "uid-2000");
  EXPECT_EQ(*caller.TenantFor("uid-2000"), "uid-2000");
  EXPECT_EQ(caller.TenantFor("default").status().code(), absl::StatusCode::kPermissionDenied);
}

TEST(AccessList, LoopbackIsTheDefaultTenantWithoutRights) {
  const Caller caller = AccessList::LoopbackCaller();
  EXPECT_FALSE(caller.is_admin());
  EXPECT_EQ(*caller.TenantFor(""), "default");
  EXPECT_EQ(caller.TenantFor("uid-0").status().code(), absl::StatusCode::kPermissionDenied);
}

TEST(Caller, TenantNamesAreShortAndPlain) {
  const Caller owner = *kAccess.CallerOf(0);
  for (const std::string& bad : {std::string(64, 'a'), std::string("a b"), std::string("a/b"),
                                 std::string("a\n"), std::string("a\0b", 3)}) {
    EXPECT_EQ(owner.TenantFor(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_TRUE(owner.TenantFor(std::string(63, 'a')).ok());
}

}  // namespace
}  // namespace kvstore::service
