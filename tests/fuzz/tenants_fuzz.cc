// The tenants file, and who is whom by it.
//
//   input: TOML text
//
// Promises: every uid and every certificate name has one owner, and is that tenant's caller; all is
// within the bounds of the contract; the file that says the same in another way reads the same; an
// error shows no salt.
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvstore/base/toml.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/tenants.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::service {
namespace {

constexpr uid_t kOwnUid = 1000;

std::string Written(const TenantRule& rule) {
  std::string out = absl::StrCat("[tenant.\"", rule.name, "\"]\nuids = [",
                                 absl::StrJoin(rule.uids, ", "), "]\ncertificates = [");
  for (const std::string& name : rule.certificate_names) {
    std::string quoted;
    for (const char c : name) {
      if (c == '"' || c == '\\') quoted.push_back('\\');
      quoted.push_back(c);
    }
    absl::StrAppend(&out, "\"", quoted, "\", ");
  }
  absl::StrAppend(&out, "]\n");
  if (!rule.salt.empty()) absl::StrAppend(&out, "salt = \"", rule.salt, "\"\n");
  for (size_t i = 0; i < tiers::kNumTierKinds; ++i) {
    if (rule.quota_bytes[i].has_value()) {
      absl::StrAppend(&out, "quota.", std::string(tiers::TierName(static_cast<tiers::TierKind>(i))),
                      " = \"", *rule.quota_bytes[i], "B\"\n");
    }
  }
  if (rule.operations_max.has_value())
    absl::StrAppend(&out, "quota.operations = ", *rule.operations_max, "\n");
  return out;
}

bool AreEqual(const TenantRule& a, const TenantRule& b) {
  return a.name == b.name && a.uids == b.uids && a.certificate_names == b.certificate_names &&
         a.salt == b.salt && a.quota_bytes == b.quota_bytes && a.operations_max == b.operations_max;
}

void CheckRules(const std::vector<TenantRule>& rules) {
  std::set<uid_t> uids;
  std::set<std::string> names;
  size_t num_uids = 0, num_names = 0;
  for (const TenantRule& rule : rules) {
    REQUIRE(CheckTenantName(rule.name).ok());
    uids.insert(rule.uids.begin(), rule.uids.end());
    names.insert(rule.certificate_names.begin(), rule.certificate_names.end());
    num_uids += rule.uids.size();
    num_names += rule.certificate_names.size();
    REQUIRE(rule.certificate_names.size() <= kTenantCertificatesMax);
    REQUIRE(rule.salt.size() <= 128 && rule.salt.size() % 2 == 0);
    for (const auto& quota : rule.quota_bytes) REQUIRE(!quota.has_value() || *quota >= 1 << 20);
    for (const std::string& name : rule.certificate_names)
      REQUIRE(CanonicalCertificateName(name) == name);
  }
  REQUIRE(rules.size() <= kTenantsMax && num_uids <= kTenantUidsMax);
  REQUIRE(uids.size() == num_uids && names.size() == num_names);
}

void CheckAccess(const std::vector<TenantRule>& rules) {
  const AccessList access(kOwnUid, rules);
  for (const TenantRule& rule : rules) {
    for (const uid_t uid : rule.uids) {
      const std::optional<Caller> caller = access.CallerOf(uid);
      REQUIRE(caller.has_value() && caller->home_tenant == rule.name);
      REQUIRE(caller->is_admin() == (uid == kOwnUid || uid == 0));
    }
    for (const std::string& name : rule.certificate_names) {
      const std::optional<Caller> caller = access.CallerOf(std::span(&name, 1));
      REQUIRE(caller.has_value() && caller->home_tenant == rule.name && !caller->is_admin());
    }
    REQUIRE(access.SaltOf(rule.name) == rule.salt);
  }
  REQUIRE(access.Callers().size() <= 2 + kTenantUidsMax + rules.size());
}

// The corpus and the dictionary write salts with this.
constexpr char kSaltBytes[] = "5f0c9b5f0c9b";

// Some key or some value has it that is not a tenant's salt: there it is no secret.
bool IsElsewhere(const toml::node& node, int depth) {
  if (const toml::table* table = node.as_table()) {
    for (const auto& [key, value] : *table) {
      if (key.str().find(kSaltBytes) != std::string_view::npos) return true;
      const bool is_salt = depth == 2 && key.str() == "salt";
      if (!is_salt && IsElsewhere(value, depth + 1)) return true;
    }
  }
  if (const toml::array* array = node.as_array()) {
    for (const toml::node& element : *array) {
      if (IsElsewhere(element, depth + 1)) return true;
    }
  }
  const toml::value<std::string>* text = node.as_string();
  return text != nullptr && text->get().find(kSaltBytes) != std::string::npos;
}

bool IsSaltShown(std::string_view text, std::string_view message) {
  if (message.find(kSaltBytes) == std::string_view::npos) return false;
  const toml::parse_result parsed = toml::parse(text);
  return !parsed || !IsElsewhere(parsed.table(), 0);
}

}  // namespace
}  // namespace kvstore::service

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  using namespace kvstore::service;
  const std::string text(reinterpret_cast<const char*>(data), bytes);
  const auto rules = ParseTenants(text, "fuzz");
  if (!rules.ok()) {
    REQUIRE(absl::IsInvalidArgument(rules.status()));
    const std::string message(rules.status().message());
    REQUIRE(!IsSaltShown(text, message));
    return 0;
  }
  CheckRules(*rules);
  CheckAccess(*rules);
  std::string written;
  for (const TenantRule& rule : *rules) written += Written(rule);
  const auto again = ParseTenants(written, "fuzz");
  REQUIRE(again.ok() && again->size() == rules->size());
  for (size_t i = 0; i < rules->size(); ++i) REQUIRE(AreEqual((*again)[i], (*rules)[i]));
  return 0;
}
