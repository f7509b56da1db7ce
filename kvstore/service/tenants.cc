#include "kvstore/service/tenants.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/base/toml.h"
#include "kvstore/base/units.h"
#include "kvstore/service/owned_file.h"

namespace kvstore::service {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kQuotaBytesMax = uint64_t{1024} << 40;
constexpr int64_t kOperationsMax = 65536;
constexpr int64_t kUidMax = int64_t{UINT32_MAX} - 1;
constexpr size_t kCertificateNameBytesMax = 255;
constexpr size_t kSaltDigitsMin = 32, kSaltDigitsMax = 128;

constexpr char kValidTenantKeys[] = "uids, certificates, salt, quota";
constexpr char kValidQuotaKeys[] = "gpu, dram, nvme, operations";

// Reads one file; remembers who owns what.
class Reader {
 public:
  explicit Reader(std::string_view file_name) : file_name_(file_name) {}

  absl::StatusOr<std::vector<TenantRule>> Read(const toml::table& root);

 private:
  struct Owner {
    std::string tenant;
    toml::source_index line;
  };

  absl::StatusOr<TenantRule> ReadTenant(std::string_view name, const toml::node& node);
  absl::Status ReadKey(const std::string& key, std::string_view name, const toml::node& node,
                       TenantRule* rule);
  absl::Status ReadUids(const std::string& key, const toml::node& node, TenantRule* rule);
  absl::Status ReadCertificates(const std::string& key, const toml::node& node, TenantRule* rule);
  absl::Status ReadSalt(const std::string& key, const toml::node& node, TenantRule* rule);
  absl::Status ReadQuota(const std::string& key, const toml::node& node, TenantRule* rule);
  // Takes `what` for `rule`, once.
  absl::Status Own(const std::string& key, const toml::node& node, const std::string& what,
                   const TenantRule& rule);
  absl::Status Bad(const toml::node& node, const std::string& key, std::string_view why,
                   std::string_view valid) const {
    return absl::InvalidArgumentError(absl::StrCat(AbslView(file_name_), ":",
                                                   node.source().begin.line, ": ", key, ": ",
                                                   AbslView(why), "; valid: ", AbslView(valid)));
  }

  const std::string_view file_name_;
  size_t num_uids_ = 0;
  std::map<std::string, Owner> owners_;  // of "uid 1000" and "certificate ..."
};

absl::StatusOr<std::vector<TenantRule>> Reader::Read(const toml::table& root) {
  std::vector<TenantRule> rules;
  for (const auto& [name, node] : root) {
    if (name.str() != "tenant")
      return Bad(node, std::string(name.str()), "unknown key", "tables [tenant.NAME]");
  }
  const toml::node* all = root.get("tenant");
  if (all == nullptr) return rules;
  const toml::table* tenants = all->as_table();
  if (tenants == nullptr) return Bad(*all, "tenant", "not a table", "tables [tenant.NAME]");
  if (tenants->size() > kTenantsMax)
    return Bad(*all, "tenant", absl::StrCat(tenants->size(), " tenants"), "at most 256");
  for (const auto& [name, node] : *tenants) {
    ASSIGN_OR_RETURN(TenantRule rule, ReadTenant(name.str(), node));
    rules.push_back(std::move(rule));
  }
  return rules;
}

absl::StatusOr<TenantRule> Reader::ReadTenant(std::string_view name, const toml::node& node) {
  const std::string key = absl::StrCat("tenant.", AbslView(name));
  if (!CheckTenantName(name).ok()) {
    return Bad(node, key, "bad tenant name", "1 to 63 letters, digits, '.', '_' or '-'");
  }
  const toml::table* table = node.as_table();
  if (table == nullptr) return Bad(node, key, "not a table", kValidTenantKeys);
  TenantRule rule;
  rule.name = name;
  for (const auto& [part, value] : *table) {
    RETURN_IF_ERROR(
        ReadKey(absl::StrCat(key, ".", AbslView(part.str())), part.str(), value, &rule));
  }
  return rule;
}

absl::Status Reader::ReadKey(const std::string& key, std::string_view name, const toml::node& node,
                             TenantRule* rule) {
  if (name == "uids") return ReadUids(key, node, rule);
  if (name == "certificates") return ReadCertificates(key, node, rule);
  if (name == "salt") return ReadSalt(key, node, rule);
  if (name == "quota") return ReadQuota(key, node, rule);
  return Bad(node, key, "unknown key", kValidTenantKeys);
}

absl::Status Reader::Own(const std::string& key, const toml::node& node, const std::string& what,
                         const TenantRule& rule) {
  const auto [known, is_new] =
      owners_.try_emplace(what, Owner{rule.name, node.source().begin.line});
  if (is_new) return absl::OkStatus();
  return Bad(node, key,
             absl::StrCat(what, " belongs to tenant ", known->second.tenant, " already (line ",
                          known->second.line, ")"),
             "one owner for each uid and each certificate name");
}

absl::Status Reader::ReadUids(const std::string& key, const toml::node& node, TenantRule* rule) {
  constexpr char kValid[] = "a list of uids, 0 to 4294967294";
  const toml::array* list = node.as_array();
  if (list == nullptr) return Bad(node, key, "not a list", kValid);
  num_uids_ += list->size();
  if (num_uids_ > kTenantUidsMax)
    return Bad(node, key, absl::StrCat(num_uids_, " uids in this file"), "at most 256");
  for (const toml::node& element : *list) {
    const toml::value<int64_t>* uid = element.as_integer();
    if (uid == nullptr) return Bad(element, key, "an element is not an integer", kValid);
    if (uid->get() < 0 || uid->get() > kUidMax)
      return Bad(element, key, absl::StrCat(uid->get(), " is out of range"), kValid);
    RETURN_IF_ERROR(Own(key, element, absl::StrCat("uid ", uid->get()), *rule));
    rule->uids.push_back(static_cast<uid_t>(uid->get()));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadCertificates(const std::string& key, const toml::node& node,
                                      TenantRule* rule) {
  constexpr char kValid[] =
      "a list of at most 64 DNS names or URIs such as \"spiffe://example.org/team\", without "
      "wildcards";
  const toml::array* list = node.as_array();
  if (list == nullptr) return Bad(node, key, "not a list", kValid);
  if (list->size() > kTenantCertificatesMax)
    return Bad(node, key, absl::StrCat(list->size(), " names"), kValid);
  for (const toml::node& element : *list) {
    const toml::value<std::string>* name = element.as_string();
    if (name == nullptr) return Bad(element, key, "an element is not a string", kValid);
    std::optional<std::string> canonical = CanonicalCertificateName(name->get());
    if (!canonical.has_value()) {
      return Bad(element, key,
                 absl::StrCat("\"", absl::CHexEscape(name->get().substr(0, 80)),
                              "\" is not a certificate name"),
                 kValid);
    }
    RETURN_IF_ERROR(Own(key, element, absl::StrCat("certificate name ", *canonical), *rule));
    rule->certificate_names.push_back(*std::move(canonical));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadSalt(const std::string& key, const toml::node& node, TenantRule* rule) {
  // The value itself stays out of messages.
  const toml::value<std::string>* salt = node.as_string();
  const bool is_good =
      salt != nullptr && salt->get().size() >= kSaltDigitsMin &&
      salt->get().size() <= kSaltDigitsMax && salt->get().size() % 2 == 0 &&
      std::ranges::all_of(salt->get(), [](unsigned char c) { return absl::ascii_isxdigit(c); });
  if (!is_good)
    return Bad(node, key, "bad salt", "32 to 128 hex digits, an even number; openssl rand -hex 32");
  rule->salt = absl::AsciiStrToLower(salt->get());
  return absl::OkStatus();
}

absl::Status Reader::ReadQuota(const std::string& key, const toml::node& node, TenantRule* rule) {
  constexpr char kValidBytes[] = "a size such as \"8GiB\", 1MiB to 1024TiB";
  const toml::table* table = node.as_table();
  if (table == nullptr) return Bad(node, key, "not a table", kValidQuotaKeys);
  for (const auto& [name, value] : *table) {
    const std::string part = absl::StrCat(key, ".", AbslView(name.str()));
    if (name.str() == "operations") {
      const toml::value<int64_t>* count = value.as_integer();
      if (count == nullptr || count->get() < 1 || count->get() > kOperationsMax)
        return Bad(value, part, "out of range or not an integer", "1 to 65536");
      rule->operations_max = static_cast<uint64_t>(count->get());
      continue;
    }
    std::optional<size_t> tier;
    for (size_t i = 0; i < tiers::kNumTierKinds; ++i) {
      if (name.str() == tiers::TierName(static_cast<tiers::TierKind>(i))) tier = i;
    }
    if (!tier.has_value()) return Bad(value, part, "unknown key", kValidQuotaKeys);
    const toml::value<std::string>* text = value.as_string();
    if (text == nullptr) return Bad(value, part, "not a string", kValidBytes);
    const absl::StatusOr<uint64_t> bytes = ParseBytes(text->get());
    if (!bytes.ok() || *bytes < kMiB || *bytes > kQuotaBytesMax)
      return Bad(value, part, "out of range or not a size", kValidBytes);
    rule->quota_bytes[*tier] = *bytes;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTenantName(std::string_view tenant) {
  const bool is_good = !tenant.empty() && tenant.size() <= kTenantBytesMax &&
                       std::ranges::all_of(tenant, [](unsigned char c) {
                         return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
                       });
  if (is_good) return absl::OkStatus();
  return absl::InvalidArgumentError("tenant: not 1 to 63 letters, digits, '.', '_' or '-'");
}

std::optional<std::string> CanonicalCertificateName(std::string_view name) {
  if (name.empty() || name.size() > kCertificateNameBytesMax) return std::nullopt;
  const size_t scheme_end = name.find("://");
  if (scheme_end != std::string_view::npos) {
    const bool is_plain =
        std::ranges::all_of(name, [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '*'; });
    if (!is_plain || scheme_end == 0 || scheme_end + 3 == name.size()) return std::nullopt;
    return std::string(name);
  }
  const bool is_dns = std::ranges::all_of(name, [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
  });
  if (!is_dns || name.front() == '.' || name.front() == '-') return std::nullopt;
  return absl::AsciiStrToLower(AbslView(name));
}

absl::StatusOr<std::vector<TenantRule>> ParseTenants(std::string_view toml_text,
                                                     std::string_view file_name) {
  toml::parse_result parsed = toml::parse(toml_text, file_name);
  if (!parsed) {
    // Not the parser's words: they quote what they stumble over, which may be an unquoted salt.
    const toml::source_position at = parsed.error().source().begin;
    return absl::InvalidArgumentError(
        absl::StrCat(AbslView(file_name), ":", at.line, ":", at.column,
                     ": not TOML (the text is not shown: this file holds salts)"));
  }
  return Reader(file_name).Read(parsed.table());
}

absl::StatusOr<std::vector<TenantRule>> LoadTenantsFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadOwnedFile(path, FileCare::kProtected));
  return ParseTenants(text, path);
}

}  // namespace kvstore::service
