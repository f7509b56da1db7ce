// A kvengine of our own that answers requests one after another (`kvengine batch`).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"
#include "tools/kvbench/program.h"
#include "tools/kvbench/settings.h"
#include "tools/kvbench/work_folder.h"

namespace kvstore::bench {

struct EngineRequest {
  std::string prompt_ids_file;
  uint32_t max_tokens = 1;
  std::string logits_file;  // to be written
};

// What kvengine says of one request.
struct EngineAnswer {
  double ttft_ms = 0;
  uint64_t reused_tokens = 0;
  uint64_t bytes_loaded = 0;
  std::vector<uint32_t> output_ids;
  // Of the reused tokens, those from this tier ("gpu", "dram", ...).
  uint64_t ReusedFrom(const std::string& tier) const;
  std::vector<std::pair<std::string, uint64_t>> reused_by_tier;
};

// Killed when its owner goes. Confined to one thread.
class EngineProcess {
 public:
  // `target`: of the daemon. Loads the model before it answers. `folder` outlives it.
  static absl::StatusOr<std::unique_ptr<EngineProcess>> Start(const Settings& settings,
                                                              const std::string& target,
                                                              const WorkFolder& folder);
  // Errors: Unavailable, it has ended, with what it said; Internal, the request failed.
  absl::StatusOr<EngineAnswer> Ask(const EngineRequest& request);

 private:
  EngineProcess(Program program, UniqueFd requests, UniqueFd answers, std::string errors_path)
      : program_(std::move(program)),
        requests_(std::move(requests)),
        answers_(std::move(answers)),
        errors_path_(std::move(errors_path)) {}
  absl::StatusOr<std::string> ReadLine();

  Program program_;
  UniqueFd requests_, answers_;
  const std::string errors_path_;
  std::string unread_;
};

}  // namespace kvstore::bench
