#include "tools/kvkeep/kept_descriptors.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace kvstore::keep {
namespace {

constexpr size_t kNameBytesMax = 255;

bool IsValidName(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::ranges::all_of(name, [](char c) { return c > ' ' && c < 127 && c != ':'; });
}

struct Request {
  bool is_ready = false, is_store = false, is_remove = false;
  std::string name = "stored";  // as sd_notify(3)
};

Request Parse(std::string_view text) {
  Request request;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    request.is_ready |= line == "READY=1";
    request.is_store |= line == "FDSTORE=1";
    request.is_remove |= line == "FDSTOREREMOVE=1";
    if (line.starts_with("FDNAME=")) request.name = line.substr(7);
  }
  return request;
}

}  // namespace

KeptDescriptors::Heard KeptDescriptors::Apply(Notification notification) {
  const Request request = Parse(notification.text);
  Heard heard{.is_ready = request.is_ready, .status = absl::OkStatus()};
  if (!request.is_store && !request.is_remove) return heard;
  if (!IsValidName(request.name)) {
    heard.status = absl::InvalidArgumentError("a descriptor's name is not valid");
  } else if (request.is_remove) {
    std::erase_if(kept_, [&](const auto& entry) { return entry.first == request.name; });
  } else {
    heard.status = Keep(request.name, std::move(notification.descriptors));
  }
  return heard;
}

absl::Status KeptDescriptors::Keep(const std::string& name, std::vector<UniqueFd> descriptors) {
  for (UniqueFd& fd : descriptors) {
    if (kept_.size() >= max_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "descriptor ", name, " is not kept: there are ", max_, " already; raise --descriptors"));
    }
    kept_.emplace_back(name, std::move(fd));
  }
  return absl::OkStatus();
}

}  // namespace kvstore::keep
