// The registry of devices: the only place that knows which ones this build has.
#include "tiers/gpu/device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvstore/base/text.h"
#include "tiers/gpu/host_device.h"

namespace kvstore::tiers {
namespace {

constexpr std::string_view kCudaPrefix = "cuda:";

bool IsCudaName(std::string_view name) {
  if (name.substr(0, kCudaPrefix.size()) != kCudaPrefix) return false;
  const std::string_view number = name.substr(kCudaPrefix.size());
  return !number.empty() && number.size() <= 3 &&
         std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name) {
  if (name == "host") return std::unique_ptr<Device>(std::make_unique<HostDevice>());
  if (IsCudaName(name)) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU device ", AbslView(name),
                     ": this build has no CUDA; valid here: host (or build with KVSTORE_CUDA=ON)"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("GPU device '", AbslView(name), "': valid are host and cuda:N"));
}

}  // namespace kvstore::tiers
