// The registry of devices: the only place that knows which ones this build has.
#include "tiers/gpu/device.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kvstore/base/text.h"
#include "tiers/gpu/host_device.h"
#ifdef KVSTORE_HAS_CUDA
#include "tiers/gpu/cuda_device.h"
#endif

namespace kvstore::tiers {
namespace {

constexpr std::string_view kCudaPrefix = "cuda:";

// N of "cuda:N".
std::optional<int> CudaNumber(std::string_view name) {
  if (name.substr(0, kCudaPrefix.size()) != kCudaPrefix) return std::nullopt;
  const std::string_view number = name.substr(kCudaPrefix.size());
  const bool is_number =
      !number.empty() && number.size() <= 3 &&
      std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!is_number) return std::nullopt;
  return std::stoi(std::string(number));
}

absl::StatusOr<std::unique_ptr<Device>> OpenCuda(int number) {
#ifdef KVSTORE_HAS_CUDA
  return CudaDevice::Open(number);
#else
  return absl::FailedPreconditionError(
      absl::StrCat("this build has no CUDA (device ", number, "); valid here: host"));
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name) {
  if (name == "host") return std::unique_ptr<Device>(std::make_unique<HostDevice>());
  if (const std::optional<int> number = CudaNumber(name)) {
    absl::StatusOr<std::unique_ptr<Device>> device = OpenCuda(*number);
    if (device.ok()) return device;
    return absl::Status(device.status().code(), absl::StrCat("GPU device ", AbslView(name), ": ",
                                                             device.status().message()));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("GPU device '", AbslView(name), "': valid are host and cuda:N"));
}

}  // namespace kvstore::tiers
