#include "engine_adapter/paging/timeline.h"

#include <absl/strings/str_cat.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>

namespace kvstore::engine {
namespace {

constexpr const char* kTrackNames[] = {"request", "compute", "load", "save"};

double Microseconds(Timeline::Time begin, Timeline::Time end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

}  // namespace

void Timeline::Add(Track track, std::string_view name, int64_t index, Time begin, Time end) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (spans_.size() == kSpansMax) {
    ++num_dropped_;
    return;
  }
  spans_.push_back({track, std::string(name), index, begin, end});
}

absl::Status Timeline::Write(const std::string& path) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  nlohmann::json events = nlohmann::json::array();
  for (int track = 0; track < 4; ++track) {
    events.push_back({{"ph", "M"},
                      {"name", "thread_name"},
                      {"pid", 1},
                      {"tid", track},
                      {"args", {{"name", kTrackNames[track]}}}});
  }
  for (const Span& span : spans_) {
    events.push_back({{"ph", "X"},
                      {"name", span.name},
                      {"pid", 1},
                      {"tid", static_cast<int>(span.track)},
                      {"ts", Microseconds(origin_, span.begin)},
                      {"dur", Microseconds(span.begin, span.end)},
                      {"args", {{"index", span.index}}}});
  }
  const nlohmann::json trace = {{"traceEvents", std::move(events)},
                                {"displayTimeUnit", "ms"},
                                {"otherData", {{"dropped_spans", num_dropped_}}}};
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << trace.dump() << "\n";
  file.close();
  if (file.fail()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write timeline ", path));
  return absl::OkStatus();
}

}  // namespace kvstore::engine
