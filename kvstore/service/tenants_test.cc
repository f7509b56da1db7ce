#include "kvstore/service/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace kvstore::service {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ErrorOf(std::string_view toml) {
  const absl::StatusOr<std::vector<TenantRule>> rules = ParseTenants(toml, "t.toml");
  EXPECT_EQ(rules.status().code(), absl::StatusCode::kInvalidArgument) << toml;
  return std::string(rules.status().message());
}

TEST(Tenants, EveryKeyIsRead) {
  const auto rules = ParseTenants(R"(
    [tenant.team-a]
    uids = [1001, 1002]
    certificates = ["spiffe://Example.org/team-a", "Engine-A.example.org"]
    salt = "00112233445566778899AABBCCDDEEFF"
    quota = { dram = "8GiB", nvme = "100GiB", operations = 256 }
    [tenant."team.b"]
    uids = [7]
  )",
                                  "t.toml");
  ASSERT_TRUE(rules.ok()) << rules.status();
  ASSERT_EQ(rules->size(), 2u);
  const TenantRule& a = (*rules)[0];
  EXPECT_EQ(a.name, "team-a");
  EXPECT_THAT(a.uids, ElementsAre(1001u, 1002u));
  EXPECT_THAT(a.certificate_names,
              ElementsAre("spiffe://Example.org/team-a", "engine-a.example.org"));
  EXPECT_EQ(a.salt, "00112233445566778899aabbccddeeff");
  EXPECT_EQ(a.quota_bytes[static_cast<size_t>(tiers::TierKind::kDram)], uint64_t{8} << 30);
  EXPECT_EQ(a.quota_bytes[static_cast<size_t>(tiers::TierKind::kNvme)], uint64_t{100} << 30);
  EXPECT_FALSE(a.quota_bytes[static_cast<size_t>(tiers::TierKind::kGpu)].has_value());
  EXPECT_EQ(a.operations_max, 256u);
  EXPECT_EQ((*rules)[1].name, "team.b");
}

TEST(Tenants, AnEmptyFileListsNobody) { EXPECT_TRUE(ParseTenants("", "t.toml")->empty()); }

TEST(Tenants, AUidWithTwoOwnersIsRefusedWithBothLines) {
  EXPECT_THAT(ErrorOf("[tenant.a]\nuids = [5]\n[tenant.b]\nuids = [4, 5]\n"),
              AllOf(HasSubstr("t.toml:4: tenant.b.uids"), HasSubstr("uid 5 belongs to tenant a"),
                    HasSubstr("(line 2)"), HasSubstr("valid: one owner")));
}

TEST(Tenants, ACertificateNameWithTwoOwnersIsRefusedWhateverItsCase) {
  EXPECT_THAT(ErrorOf("[tenant.a]\ncertificates = [\"x.example\"]\n"
                      "[tenant.b]\ncertificates = [\"X.Example\"]\n"),
              AllOf(HasSubstr("t.toml:4: tenant.b.certificates"), HasSubstr("x.example"),
                    HasSubstr("tenant a already (line 2)")));
}

TEST(Tenants, WhatIsWrongIsNamedWithItsLineAndWhatIsValid) {
  const std::pair<const char*, const char*> cases[] = {
      {"[tenants.a]\n", "t.toml:1: tenants: unknown key; valid: tables [tenant.NAME]"},
      {"tenant = 1\n", "t.toml:1: tenant: not a table"},
      {"[tenant.\"a b\"]\n", "bad tenant name; valid: 1 to 63"},
      {"[tenant.\"\"]\n", "bad tenant name"},
      {"[tenant.a]\nuid = [1]\n", "t.toml:2: tenant.a.uid: unknown key; valid: uids, certificates"},
      {"[tenant.a]\nuids = 1\n", "t.toml:2: tenant.a.uids: not a list"},
      {"[tenant.a]\nuids = [\"1\"]\n", "not an integer"},
      {"[tenant.a]\nuids = [-1]\n", "-1 is out of range; valid: a list of uids, 0 to 4294967294"},
      {"[tenant.a]\nuids = [4294967295]\n", "4294967295 is out of range"},
      {"[tenant.a]\nuids = [1, 1]\n", "uid 1 belongs to tenant a already (line 2)"},
      {"[tenant.a]\ncertificates = [\"*.example.org\"]\n", "not a certificate name"},
      {"[tenant.a]\ncertificates = [\"\"]\n", "not a certificate name"},
      {"[tenant.a]\ncertificates = [\"spiffe://\"]\n", "not a certificate name"},
      {"[tenant.a]\ncertificates = [\"spiffe://a\\u0000b\"]\n", "not a certificate name"},
      {"[tenant.a]\ncertificates = [7]\n", "not a string"},
      {"[tenant.a]\nsalt = \"abc\"\n", "bad salt; valid: 32 to 128 hex digits"},
      {"[tenant.a]\nquota = 7\n", "not a table; valid: gpu, dram, nvme, operations"},
      {"[tenant.a]\nquota = { disk = \"1GiB\" }\n", "tenant.a.quota.disk: unknown key"},
      {"[tenant.a]\nquota = { dram = \"much\" }\n", "tenant.a.quota.dram"},
      {"[tenant.a]\nquota = { dram = \"1KiB\" }\n", "valid: a size such as \"8GiB\""},
      {"[tenant.a]\nquota = { dram = \"50%\" }\n", "valid: a size such as"},
      {"[tenant.a]\nquota = { operations = 0 }\n", "valid: 1 to 65536"},
      {"[tenant.a]\n[tenant.a]\n", "t.toml:2"},
      {"[tenant.a\n", "t.toml:1"},
  };
  for (const auto& [toml, part] : cases) EXPECT_THAT(ErrorOf(toml), HasSubstr(part)) << toml;
}

TEST(Tenants, ASaltIsNeverInAMessage) {
  EXPECT_THAT(ErrorOf("[tenant.a]\nsalt = \"s3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3t\"\n"),
              Not(HasSubstr("s3cr3t")));
}

TEST(Tenants, WhatIsNotTomlIsPlacedAndNotQuoted) {
  const std::string digits(32, '7');  // a salt without its quotes is too large a number
  EXPECT_THAT(ErrorOf("[tenant.a]\nsalt = " + digits + "\n"),
              AllOf(HasSubstr("t.toml:2:"), HasSubstr("not TOML"), Not(HasSubstr("7777"))));
}

TEST(Tenants, TooManyAreRefused) {
  std::string text;
  for (int i = 0; i < 257; ++i) text += "[tenant.t" + std::to_string(i) + "]\n";
  EXPECT_THAT(ErrorOf(text), HasSubstr("257 tenants; valid: at most 256"));
}

class TenantsFile : public ::testing::Test {
 protected:
  TenantsFile() : path_(::testing::TempDir() + "tenants-" + std::to_string(getpid())) {
    std::ofstream(path_) << "[tenant.a]\n";
    chmod(path_.c_str(), 0644);
  }
  ~TenantsFile() override { unlink(path_.c_str()); }
  const std::string path_;
};

TEST_F(TenantsFile, IsReadIfOnlyWeCanWriteIt) { EXPECT_EQ(LoadTenantsFile(path_)->size(), 1u); }

TEST_F(TenantsFile, ThatOthersCanWriteIsRefused) {
  for (mode_t mode : {0664, 0646, 0666}) {
    chmod(path_.c_str(), mode);
    const absl::Status status = LoadTenantsFile(path_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr("chmod go-w")));
  }
}

TEST_F(TenantsFile, OfAnotherUidIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  ASSERT_EQ(chown(path_.c_str(), 12345, 12345), 0);
  EXPECT_THAT(std::string(LoadTenantsFile(path_).status().message()),
              HasSubstr("belongs to uid 12345"));
}

TEST_F(TenantsFile, ThatIsMissingOrNoFileIsRefused) {
  EXPECT_EQ(LoadTenantsFile(path_ + "x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(LoadTenantsFile("/dev/null").status().message()),
              HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace kvstore::service
