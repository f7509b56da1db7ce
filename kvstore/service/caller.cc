#include "kvstore/service/caller.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::service {

absl::Status CheckTenantName(std::string_view tenant) {
  const bool is_good = !tenant.empty() && tenant.size() <= kTenantBytesMax &&
                       std::ranges::all_of(tenant, [](unsigned char c) {
                         return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
                       });
  if (is_good) return absl::OkStatus();
  return absl::InvalidArgumentError("tenant: not 1 to 63 letters, digits, '.', '_' or '-'");
}

absl::StatusOr<std::string> Caller::TenantFor(std::string_view named) const {
  if (named.empty()) return home_tenant;
  RETURN_IF_ERROR(CheckTenantName(named));
  if (rights == Rights::kOwner || named == home_tenant) return std::string(named);
  return absl::PermissionDeniedError(absl::StrCat(Label(), " acts for tenant '", home_tenant,
                                                  "' only, not for '", AbslView(named), "'"));
}

std::string Caller::Label() const {
  return uid.has_value() ? absl::StrCat("uid ", *uid) : std::string("tcp");
}

std::optional<Caller> AccessList::CallerOf(uid_t uid) const {
  if (uid == own_uid_ || uid == 0)
    return Caller{.uid = uid, .rights = Caller::Rights::kOwner, .home_tenant = kDefaultTenant};
  if (std::ranges::find(allowed_, uid) == allowed_.end()) return std::nullopt;
  return Caller{
      .uid = uid, .rights = Caller::Rights::kTenant, .home_tenant = absl::StrCat("uid-", uid)};
}

}  // namespace kvstore::service
