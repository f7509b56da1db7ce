// The parts of config.json that have files of their own: each reads its keys into a ModelConfig
// whose family and shape are known, and refuses what the engine would compute wrongly.
//
// It pulls in nlohmann/json: include it from sources only.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <string_view>

#include "engine_adapter/json/json_file.h"
#include "engine_adapter/llama/model_config.h"

namespace kvstore::engine {

// Bounds far above any published model; products of three of them stay below 2^63.
inline constexpr int64_t kLayersMax = 1024;
inline constexpr int64_t kHiddenMax = 1 << 17;
inline constexpr int64_t kIntermediateMax = 1 << 20;
inline constexpr int64_t kHeadsMax = 1024;
inline constexpr int64_t kHeadDimMax = 512;
inline constexpr int64_t kLatentMax = 8192;
inline constexpr int64_t kExpertsMax = 1024;
inline constexpr int64_t kSharedExpertsMax = 64;
inline constexpr int64_t kVocabMax = 1 << 21;
inline constexpr int64_t kPositionsMax = 1 << 24;

// config_rope.cc: `rope_theta` and `rope_scaling` at the top, or both inside `rope_parameters`
// (transformers 5). Errors of all: InvalidArgument, naming file and key.
absl::Status ReadRope(const JsonFields& fields, std::string_view file_name, ModelConfig& config);

// config_latent.cc: the head sizes of deepseek_v2. Sets `latent` and `head_dim`.
absl::Status ReadLatentAttention(const JsonFields& fields, ModelConfig& config);

// config_experts.cc: nothing for a dense family; else sets `experts`.
absl::Status ReadExperts(const JsonFields& fields, ModelConfig& config);

}  // namespace kvstore::engine
