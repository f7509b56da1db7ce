#include "tools/kvbench/work_folder.h"

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvstore::bench {

absl::StatusOr<WorkFolder> WorkFolder::Create(const std::string& parent) {
  std::string path = parent + "/kvbench.XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot make a folder in ", parent));
  }
  return WorkFolder(std::move(path));
}

WorkFolder::WorkFolder(WorkFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}

WorkFolder::~WorkFolder() {
  std::error_code error;
  if (!path_.empty()) std::filesystem::remove_all(path_, error);
}

}  // namespace kvstore::bench
