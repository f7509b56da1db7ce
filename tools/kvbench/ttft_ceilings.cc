#include "tools/kvbench/ttft_ceilings.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/program.h"
#include "tools/kvbench/results.h"

namespace kvstore::bench {
namespace {

struct BudgetRow {
  uint32_t tokens;
  double cold, gpu, dram;  // ms
};
// 8B shapes in bf16 on an H200, 64 tokens behind the reused ones.
constexpr BudgetRow kBudgets[] = {
    {8192, 205, 6, 22}, {16384, 475, 6.8, 42}, {32768, 1195, 8.5, 82}, {65536, 3300, 12, 162}};

}  // namespace

double ModelShape::PrefillFlops(uint64_t tokens) const {
  const double weights_of_layer =
      static_cast<double>(hidden * (heads + 2 * kv_heads) * head_dim + heads * head_dim * hidden +
                          3 * hidden * intermediate);
  const auto count = static_cast<double>(tokens);
  // Scores and weighted values, each token against those before it.
  const double attention = 2.0 * static_cast<double>(heads * head_dim) * count * (count + 1);
  return static_cast<double>(layers) * (2 * count * weights_of_layer + attention) +
         2.0 * static_cast<double>(hidden * vocabulary);
}

absl::StatusOr<ModelShape> ReadModelShape(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(model_dir + "/config.json"));
  const nlohmann::json config = nlohmann::json::parse(text, nullptr, false);
  const auto number = [&config](const char* key) -> uint64_t {
    const bool is_there = config.is_object() && config.contains(key);
    return is_there && config[key].is_number_unsigned() ? config[key].get<uint64_t>() : 0;
  };
  ModelShape shape = {.vocabulary = number("vocab_size"),
                      .hidden = number("hidden_size"),
                      .intermediate = number("intermediate_size"),
                      .layers = number("num_hidden_layers"),
                      .heads = number("num_attention_heads"),
                      .kv_heads = number("num_key_value_heads"),
                      .head_dim = number("head_dim")};
  if (shape.vocabulary == 0)
    return absl::InvalidArgumentError(absl::StrCat(model_dir, ": no vocab_size in config.json"));
  if (shape.head_dim == 0 && shape.heads > 0) shape.head_dim = shape.hidden / shape.heads;
  return shape;
}

std::optional<double> StatedFlops(std::string_view device_name) {
  for (const char* chip : {"H100 80GB HBM3", "H200"}) {
    if (device_name.find(chip) != std::string_view::npos) return 989e12;
  }
  return std::nullopt;
}

std::optional<Budget> TtftBudget(const ModelShape& shape, std::string_view device_name,
                                 std::string_view source, uint32_t tokens) {
  const bool is_8b = shape.hidden == 4096 && shape.intermediate == 14336 && shape.layers == 32 &&
                     shape.kv_heads == 8;
  if (!is_8b || device_name.find("H200") == std::string_view::npos) return std::nullopt;
  for (const BudgetRow& row : kBudgets) {
    if (row.tokens != tokens) continue;
    if (source == "cold") return ValueBudget("P2", row.cold);
    if (source == "gpu" || source == "gpu_restarted") return ValueBudget("P3", row.gpu);
    if (source == "dram") return ValueBudget("P1", row.dram);
  }
  return std::nullopt;
}

}  // namespace kvstore::bench
