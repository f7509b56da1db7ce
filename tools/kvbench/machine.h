// Where and of what a figure was measured.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace kvstore::bench {

struct Machine {
  std::string cpu;
  int cores = 0;  // that this process may use
  uint64_t memory_bytes = 0;
  std::string os, kernel;
  std::string commit;       // "-dirty" at its end: the tree differed from it
  std::string build;        // "Release, GCC 12.2.0"
  std::string command;      // of this run
  std::string started;      // UTC
  double load_average = 0;  // of the last minute, at the start: above 0.5 others were measured too
};

Machine ThisMachine(int argc, const char* const* argv);
nlohmann::json MachineJson(const Machine& machine);
std::string MachineLine(const Machine& machine);

// "2MiB", "64KiB", "4096B": exact, for names of figures.
std::string SizeName(uint64_t bytes);

}  // namespace kvstore::bench
