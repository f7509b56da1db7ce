// The command line of kvengine, parsed and checked before anything is opened.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine_adapter/paging/kv_layout.h"
#include "kernels/sampling.h"

namespace kvstore::engine {

// Exit codes of kvengine.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

enum class Device : uint8_t { kCpu, kCuda };

// What computes, and where reused pages come from.
struct EngineOptions {
  std::string model_dir;
  Device device = Device::kCpu;
  std::string store_target;  // "unix:PATH"; empty: no store
  int64_t block_tokens = 64;
  KvDtype kv_dtype = KvDtype::kBf16;
  int num_threads = 0;  // 0: all CPUs of this process
};

// `kvengine generate`, or one request of `kvengine batch`. Exactly one of prompt, prompt_file,
// prompt_ids and prompt_ids_file is given.
struct GenerateCommand {
  EngineOptions engine;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;  // "-" is standard input
  std::optional<std::vector<uint32_t>> prompt_ids;
  std::optional<std::string> prompt_ids_file;  // one token id per whitespace; "-" is standard input
  std::string question;                        // put behind the prompt file's text
  bool is_chat = false;
  int64_t max_tokens = 64;
  kernels::SamplingOptions sampling;
  uint64_t seed = 0;
  std::string timeline_file;  // empty: none
  std::string logits_file;    // empty: none
  bool has_json_output = false;
};

// `kvengine batch`.
struct BatchCommand {
  EngineOptions engine;
  std::string requests_file;  // "-" is standard input
};

// The command, or the exit code when there is nothing left to do: help was printed, or the usage
// was wrong and said so.
std::variant<GenerateCommand, BatchCommand, int> ParseCommandLine(int argc, char** argv);

}  // namespace kvstore::engine
