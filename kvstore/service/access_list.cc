#include "kvstore/service/access_list.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvstore::service {

const TenantRule* AccessList::RuleOf(uid_t uid) const {
  for (const TenantRule& rule : tenants_) {
    if (std::ranges::find(rule.uids, uid) != rule.uids.end()) return &rule;
  }
  return nullptr;
}

std::optional<Caller> AccessList::CallerOf(uid_t uid) const {
  const TenantRule* rule = RuleOf(uid);
  if (uid == own_uid_ || uid == 0) {
    return Caller{.uid = uid,
                  .rights = Caller::Rights::kOwner,
                  .home_tenant = rule == nullptr ? kDefaultTenant : rule->name};
  }
  if (rule != nullptr) return Caller{.uid = uid, .home_tenant = rule->name};
  if (std::ranges::find(allowed_, uid) == allowed_.end()) return std::nullopt;
  return Caller{.uid = uid, .home_tenant = absl::StrCat("uid-", uid)};
}

std::optional<Caller> AccessList::CallerOf(std::span<const std::string> names) const {
  const TenantRule* found = nullptr;
  for (const TenantRule& rule : tenants_) {
    if (std::ranges::find_first_of(rule.certificate_names, names) == rule.certificate_names.end())
      continue;
    if (found != nullptr) return std::nullopt;
    found = &rule;
  }
  if (found == nullptr) return std::nullopt;
  return Caller{.way = Caller::Way::kTls, .home_tenant = found->name};
}

std::vector<Caller> AccessList::Callers() const {
  std::vector<Caller> callers = {*CallerOf(own_uid_)};
  const auto add = [&callers](std::optional<Caller> caller) {
    if (std::ranges::find(callers, *caller) == callers.end()) callers.push_back(*std::move(caller));
  };
  add(CallerOf(uid_t{0}));
  for (uid_t uid : allowed_) add(CallerOf(uid));
  for (const TenantRule& rule : tenants_) {
    for (uid_t uid : rule.uids) add(CallerOf(uid));
    if (!rule.certificate_names.empty()) add(CallerOf(std::span(rule.certificate_names).first(1)));
  }
  return callers;
}

std::string AccessList::SaltOf(std::string_view tenant) const {
  for (const TenantRule& rule : tenants_) {
    if (rule.name == tenant) return rule.salt;
  }
  return {};
}

}  // namespace kvstore::service
