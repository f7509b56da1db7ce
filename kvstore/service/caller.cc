#include "kvstore/service/caller.h"

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::service {

absl::StatusOr<std::string> Caller::TenantFor(std::string_view named) const {
  if (named.empty()) return home_tenant;
  RETURN_IF_ERROR(CheckTenantName(named));
  if (rights == Rights::kOwner || named == home_tenant) return std::string(named);
  return absl::PermissionDeniedError(absl::StrCat(Label(), " acts for tenant '", home_tenant,
                                                  "' only, not for '", AbslView(named), "'"));
}

std::string Caller::Label() const {
  if (uid.has_value()) return absl::StrCat("uid ", *uid);
  return way == Way::kTls ? absl::StrCat("certificate of ", home_tenant) : std::string("tcp");
}

}  // namespace kvstore::service
