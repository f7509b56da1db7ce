#include "kvstore/service/access_list.h"

#include <gtest/gtest.h>

namespace kvstore::service {
namespace {

const AccessList kAccess(/*own_uid=*/1000, /*allowed=*/std::vector<uid_t>{2000});

AccessList WithFile() {
  return AccessList(1000, *ParseTenants(R"(
    [tenant.team-a]
    uids = [2000, 2001]
    certificates = ["spiffe://x/a", "a.example"]
    salt = "00112233445566778899aabbccddeeff"
    [tenant.team-b]
    uids = [0]
    certificates = ["spiffe://x/b"]
  )",
                                        "t.toml"));
}

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

TEST(AccessList, AListedUidActsForTheTenantThatListsItAndNoOther) {
  const AccessList list = WithFile();
  for (uid_t uid : {2000u, 2001u}) {
    const Caller caller = *list.CallerOf(uid);
    EXPECT_FALSE(caller.is_admin());
    EXPECT_EQ(*caller.TenantFor(""), "team-a");
    EXPECT_EQ(caller.TenantFor("team-b").status().code(), absl::StatusCode::kPermissionDenied);
  }
  EXPECT_FALSE(list.CallerOf(2002).has_value());
}

TEST(AccessList, OwnersStayOwnersAndGetTheHomeThatTheFileGivesThem) {
  const AccessList list = WithFile();
  EXPECT_TRUE(list.CallerOf(0)->is_admin());
  EXPECT_EQ(list.CallerOf(0)->home_tenant, "team-b");
  EXPECT_TRUE(list.CallerOf(1000)->is_admin());
  EXPECT_EQ(list.CallerOf(1000)->home_tenant, "default");
}

TEST(AccessList, ACertificateActsForTheTenantThatListsOneOfItsNames) {
  const AccessList list = WithFile();
  const auto caller = [&list](const std::vector<std::string>& names) {
    return list.CallerOf(names);
  };
  const Caller a = *caller({"other.example", "a.example"});
  EXPECT_EQ(a.home_tenant, "team-a");
  EXPECT_FALSE(a.is_admin());
  EXPECT_FALSE(a.uid.has_value());
  EXPECT_EQ(a, *caller({"spiffe://x/a"}));
  EXPECT_FALSE(caller({"other.example"}).has_value());
  EXPECT_FALSE(caller({}).has_value());
  EXPECT_FALSE(caller({"spiffe://x/a", "spiffe://x/b"}).has_value()) << "of two tenants: of none";
}

TEST(AccessList, EveryoneIsListedOnce) {
  EXPECT_EQ(kAccess.Callers().size(), 3u);     // own uid, root, 2000
  EXPECT_EQ(WithFile().Callers().size(), 6u);  // own uid, root, 2000, 2001, two tenants by name
}

TEST(AccessList, SaltsAreOfTheirTenantOnly) {
  EXPECT_EQ(WithFile().SaltOf("team-a"), "00112233445566778899aabbccddeeff");
  EXPECT_EQ(WithFile().SaltOf("team-b"), "");
  EXPECT_EQ(WithFile().SaltOf("default"), "");
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
