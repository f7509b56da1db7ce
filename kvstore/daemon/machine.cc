#include "kvstore/daemon/machine.h"

#include <malloc.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace kvstore::daemon {
namespace {

// The first number in a file of /proc or /sys; 0 if there is none ("max", or no such file).
uint64_t NumberIn(const std::string& path) {
  std::ifstream in(path);
  uint64_t value = 0;
  in >> value;
  return in.fail() ? 0 : value;
}

uint64_t TotalMemory() {
  std::ifstream in("/proc/meminfo");
  std::string name, unit;
  uint64_t kib = 0;
  while (in >> name >> kib) {
    std::getline(in, unit);
    if (name == "MemTotal:") return kib << 10;
  }
  return 0;
}

// Limits of our cgroup and those above it, version 2 and 1; 0: none.
uint64_t CgroupLimit() {
  std::ifstream in("/proc/self/cgroup");
  uint64_t limit = 0;
  const auto note = [&limit](uint64_t bytes) {
    if (bytes != 0 && (limit == 0 || bytes < limit)) limit = bytes;
  };
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && controllers != "memory") continue;
    const std::string root = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const char* const file = is_v2 ? "/memory.max" : "/memory.limit_in_bytes";
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      note(NumberIn(root + (group == "/" ? "" : group.string()) + file));
      if (group == "/" || group.empty()) break;
    }
  }
  return limit;
}

}  // namespace

Machine LookAtMachine() {
  Machine machine;
  machine.memory_bytes = TotalMemory();
  if (const uint64_t limit = CgroupLimit(); limit != 0)
    machine.memory_bytes = std::min(machine.memory_bytes, limit);
  const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
  const bool has_own_dir = geteuid() != 0 && runtime_dir != nullptr && *runtime_dir != '\0';
  machine.default_socket_path =
      std::string(has_own_dir ? runtime_dir : "/run") + "/kvstore/kvstored.sock";
  return machine;
}

uint64_t RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  if (limit.rlim_cur < limit.rlim_max) {
    const rlimit raised{.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) return raised.rlim_cur;
  }
  return limit.rlim_cur;
}

uint64_t CountOpenFiles() {
  uint64_t count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error))
    ++count;
  return count;
}

std::array<uint8_t, 16> ReadBootId() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string text;
  in >> text;
  std::erase(text, '-');
  std::array<uint8_t, 16> id{};
  for (size_t i = 0; text.size() == 2 * id.size() && i < id.size(); ++i)
    std::from_chars(&text[2 * i], &text[2 * i] + 2, id[i], 16);
  return id;
}

void TuneAllocator() {
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

void HardenProcess() {
  umask(077);
  prctl(PR_SET_DUMPABLE, 0);
}

}  // namespace kvstore::daemon
