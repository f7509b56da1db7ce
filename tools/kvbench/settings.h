// What kvbench was asked to do.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvstore::bench {

// Sets that fit a test: a run takes seconds and its figures mean little.
enum class Effort : uint8_t { kFull, kQuick };

struct Settings {
  std::string suite;
  Effort effort = Effort::kFull;
  std::optional<std::string> json_path;
  std::optional<std::string> plot_path;
  int repeats = 0;         // 0: 5, of quick runs 2
  std::string bin_dir;     // of kvstored, kvengine, engine_prefill_bench
  std::string work_dir;    // on a disk: daemons and NVMe tiers get folders of their own in it
  uint64_t set_bytes = 0;  // store, nvme: bytes of pages; 0: 2 GiB, of quick runs 64 MiB
  // store
  std::vector<std::string> versus;  // "redis=unix:PATH"
  // index
  uint64_t index_blocks = 0;  // resident; 0: one million, of quick runs 20,000
  // nvme
  uint64_t restart_blocks = 0;  // 0: one million, of quick runs 2,000
  // pages, ttft
  int device = 0;  // of CUDA
  // ttft
  std::string model_dir;
  bool is_on_cuda = false;
  std::vector<uint32_t> prompt_tokens;
  uint32_t suffix_tokens = 0;  // behind them, in no block
  uint64_t tier_bytes = 0;     // of GPU and DRAM tier; 0: 2 GiB, on CUDA 12 GiB
  uint32_t block_tokens = 0;
  int threads = 0;  // of the engine; 0: its own choice

  bool is_quick() const { return effort == Effort::kQuick; }
};

}  // namespace kvstore::bench
