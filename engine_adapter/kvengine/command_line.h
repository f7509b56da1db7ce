// The command line of kvengine, parsed and checked before anything is opened.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
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

// `kvengine serve`. Sizes that are 0 are derived from the model and the others (serve_command.h).
struct ServeCommand {
  EngineOptions engine;
  std::string http_address = "127.0.0.1:8000";
  std::string grpc_address;  // empty: no gRPC
  std::string api_key_file;  // empty: no key
  std::string model_name;    // empty: the folder's name
  int64_t context_tokens = 0;
  uint64_t kv_bytes = uint64_t{4} << 30;
  int64_t sequences_max = 8;
  int64_t queue_max = 64;
  int64_t step_tokens = 128;
  int64_t default_max_tokens = 512;
  unsigned connections_max = 256;
  absl::Duration drain_time = absl::Seconds(30);
};

using Command = std::variant<GenerateCommand, BatchCommand, ServeCommand, int>;

// The command, or the exit code when there is nothing left to do: help was printed, or the usage
// was wrong and said so.
Command ParseCommandLine(int argc, char** argv);

}  // namespace kvstore::engine
