// Somebody who keeps descriptors, for tests: outlives tiers as a service manager outlives daemons.
#pragma once

#include <fcntl.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tiers/descriptor_keeper.h"

namespace kvstore::tiers {

class KeeperOfTest final : public DescriptorKeeper {
 public:
  // A process begins: it is passed what is kept now.
  void BeginProcess() {
    passed_.clear();
    names_.clear();
    for (const auto& [name, fd] : kept_) {
      names_.push_back(name);
      passed_[name] = Duplicate(fd.get());
    }
  }
  bool Has(const std::string& name) const { return kept_.contains(name); }
  size_t size() const { return kept_.size(); }
  int fd(const std::string& name) const { return kept_.at(name).get(); }
  void Swap(const std::string& one, const std::string& other) {
    std::swap(kept_.at(one), kept_.at(other));
  }
  void Lose(const std::string& name) { kept_.erase(name); }

  absl::Status Keep(const std::string& name, int fd) override {
    kept_[name] = Duplicate(fd);
    return absl::OkStatus();
  }
  void Forget(const std::string& name) override { kept_.erase(name); }
  std::vector<std::string> Names() const override { return names_; }
  absl::StatusOr<UniqueFd> Take(const std::string& name) override {
    const auto it = passed_.find(name);
    if (it == passed_.end()) return absl::NotFoundError(absl::StrCat("no ", name));
    UniqueFd fd = std::move(it->second);
    passed_.erase(it);
    return fd;
  }

 private:
  static UniqueFd Duplicate(int fd) { return UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

  std::map<std::string, UniqueFd> kept_, passed_;
  std::vector<std::string> names_;
};

}  // namespace kvstore::tiers
