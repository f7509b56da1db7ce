#include "engine_adapter/kvengine/report.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <nlohmann/json.hpp>

namespace kvstore::engine {
namespace {

double Milliseconds(std::chrono::duration<double> time) { return time.count() * 1e3; }

}  // namespace

nlohmann::json ReportJson(const GenerateResult& result, int64_t block_tokens,
                          const std::string& output_text) {
  nlohmann::json by_tier = nlohmann::json::object();
  for (size_t source = 0; source < kNumBlockSources; ++source) {
    by_tier[std::string(BlockSourceName(static_cast<BlockSource>(source)))] =
        result.load.blocks_by_source[source] * block_tokens;
  }
  nlohmann::json failures = nlohmann::json::object();
  for (const auto& [reason, blocks] : result.load.failures) failures[reason] = blocks;
  return {{"prompt_tokens", result.prompt_tokens}, {"reused_tokens", result.reused_tokens},
          {"reused_by_tier", std::move(by_tier)},  {"bytes_loaded", result.load.bytes_loaded},
          {"ttft_ms", Milliseconds(result.ttft)},  {"tpot_ms", Milliseconds(result.tpot)},
          {"output_ids", result.output_ids},       {"output_text", output_text},
          {"load_failures", std::move(failures)}};
}

nlohmann::json ErrorJson(const absl::Status& status) {
  return {{"error",
           {{"code", absl::StatusCodeToString(status.code())},
            {"message", std::string(status.message())}}}};
}

std::string ReportLine(const GenerateResult& result, int64_t block_tokens) {
  std::string line =
      absl::StrFormat("%d prompt tokens, %d reused", result.prompt_tokens, result.reused_tokens);
  std::string separator = " (";
  for (size_t source = 0; source < kNumBlockSources; ++source) {
    if (result.load.blocks_by_source[source] == 0) continue;
    const std::string_view name = BlockSourceName(static_cast<BlockSource>(source));
    absl::StrAppend(&line, separator, std::string(name), " ",
                    result.load.blocks_by_source[source] * block_tokens);
    separator = ", ";
  }
  if (separator == ", ") absl::StrAppend(&line, ")");
  absl::StrAppendFormat(&line, "; TTFT %.1f ms; %d tokens, %.1f ms each", Milliseconds(result.ttft),
                        result.output_ids.size(), Milliseconds(result.tpot));
  for (const auto& [reason, blocks] : result.load.failures) {
    absl::StrAppend(&line, "; ", blocks, " blocks recomputed: ", reason);
  }
  return line;
}

}  // namespace kvstore::engine
