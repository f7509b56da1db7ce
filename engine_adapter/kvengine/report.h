// What `kvengine generate` says about a finished request. The JSON fields are a contract with
// scripts: add, never rename.
#pragma once

#include <absl/status/status.h>

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine_adapter/llama/generate.h"

namespace kvstore::engine {

// {prompt_tokens, reused_tokens, reused_by_tier{}, bytes_loaded, ttft_ms, tpot_ms, output_ids[],
// output_text, load_failures{}} reused_by_tier counts tokens; they add up to whole blocks, so to
// one more than reused_tokens on a full hit.
nlohmann::json ReportJson(const GenerateResult& result, int64_t block_tokens,
                          const std::string& output_text);

// {error: {code, message}}
nlohmann::json ErrorJson(const absl::Status& status);

// One line for people.
std::string ReportLine(const GenerateResult& result, int64_t block_tokens);

}  // namespace kvstore::engine
