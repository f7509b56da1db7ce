#include "tools/kvbench/machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvbench_commit.h"

namespace kvstore::bench {
namespace {

// What follows `separator` in the first line of `path` that starts with `key`.
std::string FindLine(const char* path, const std::string& key, char separator) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    std::string value = line.substr(line.find_first_not_of(" \t\"", at + 1));
    while (!value.empty() && (value.back() == '"' || value.back() == ' ')) value.pop_back();
    return value;
  }
  return "unknown";
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

}  // namespace

Machine ThisMachine(int argc, const char* const* argv) {
  Machine machine;
  machine.cpu = FindLine("/proc/cpuinfo", "model name", ':');
  machine.cores = UsableCores();
  machine.memory_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  machine.os = FindLine("/etc/os-release", "PRETTY_NAME", '=');
  utsname name{};
  if (uname(&name) == 0) machine.kernel = name.release;
  machine.commit = KVBENCH_COMMIT;
  machine.build = absl::StrCat(KVBENCH_BUILD_TYPE, ", ", KVBENCH_COMPILER);
  for (int i = 0; i < argc; ++i) absl::StrAppend(&machine.command, i > 0 ? " " : "", argv[i]);
  machine.started = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  if (getloadavg(&machine.load_average, 1) != 1) machine.load_average = 0;
  return machine;
}

nlohmann::json MachineJson(const Machine& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"memory_bytes", machine.memory_bytes},
          {"os", machine.os},
          {"kernel", machine.kernel}};
}

std::string MachineLine(const Machine& machine) {
  return absl::StrFormat(
      "%s, %d cores, %.0f GiB, %s, Linux %s; commit %s, %s; load %.2f; %s", machine.cpu,
      machine.cores, static_cast<double>(machine.memory_bytes) / double{1 << 30}, machine.os,
      machine.kernel, machine.commit, machine.build, machine.load_average, machine.started);
}

std::string SizeName(uint64_t bytes) {
  if (bytes % (1 << 30) == 0) return absl::StrCat(bytes >> 30, "GiB");
  if (bytes % (1 << 20) == 0) return absl::StrCat(bytes >> 20, "MiB");
  if (bytes % (1 << 10) == 0) return absl::StrCat(bytes >> 10, "KiB");
  return absl::StrCat(bytes, "B");
}

}  // namespace kvstore::bench
