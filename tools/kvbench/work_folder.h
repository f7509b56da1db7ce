// A folder of our own that goes with its owner.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvstore::bench {

class WorkFolder {
 public:
  // Below `parent`. Errors: Unavailable.
  static absl::StatusOr<WorkFolder> Create(const std::string& parent);
  WorkFolder(WorkFolder&& other) noexcept;
  WorkFolder& operator=(WorkFolder&& other) = delete;
  ~WorkFolder();

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit WorkFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace kvstore::bench
