// Random models, a prefix cache that remembers, and runs of single requests over both: what tests of
// generation compare with.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "engine_adapter/llama/generate.h"
#include "engine_adapter/llama/test_model_files.h"
#include "engine_adapter/llama/test_random_model.h"
#include "engine_adapter/llama_cpu/cpu_backend.h"

namespace kvstore::engine {

using Page = std::vector<std::byte>;
using Pages = std::map<int64_t, Page>;

inline constexpr int64_t kBlockTokens = 16;
inline constexpr int64_t kHitBlocks =
    14;  // 224 tokens: two pieces of rows in a product, two tiles of keys in attention

struct LoadedModel {
  explicit LoadedModel(const RandomModel& model) {
    RandomModelWriter(model, 42).Write(folder.path());
    auto read = ReadModelConfig(folder.path());
    EXPECT_TRUE(read.ok()) << read.status();
    config = *read;
    auto opened = ModelWeights::Open(folder.path(), config);
    EXPECT_TRUE(opened.ok()) << opened.status();
    weights = std::make_unique<ModelWeights>(*std::move(opened));
  }

  std::unique_ptr<Backend> MakeBackend(CpuBackendOptions options = {}) const {
    if (options.block_tokens == CpuBackendOptions().block_tokens) {
      options.block_tokens = kBlockTokens;
    }
    auto backend = CreateCpuBackend(config, *weights, options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }

  TempFolder folder;
  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
};

// Gives the leading `num_loaded` of `stored`, NaN pages for the rest, and keeps copies of what is
// published. From layer `lost_layer` on only `num_left` of the loaded blocks are good.
class TestCache final : public PrefixCache {
 public:
  TestCache(const KvLayout& layout, const Pages& stored, int64_t num_loaded)
      : layout_(layout), stored_(stored), memory_(layout), fresh_(memory_, PageMemory::Fill::kNan) {
    load_.num_blocks = num_loaded;
  }

  PrefixLoad LoadPrefix(std::span<const uint32_t>) override { return load_; }
  const std::byte* LoadedPage(int64_t block) const override { return stored_.at(block).data(); }
  int64_t WaitReady(int64_t layer) override {
    layers_waited_.push_back(layer);
    return layer < lost_layer_ ? load_.num_blocks : std::min(load_.num_blocks, num_left_);
  }
  bool IsIntact() override { return passes_left_-- > 0; }
  absl::StatusOr<std::byte*> NewPage(int64_t block) override {
    auto page = fresh_.NewPage(block);
    if (page.ok()) pages_[block] = *page;
    return page;
  }
  void PublishPage(int64_t block, std::span<const uint32_t> tokens) override {
    published_[block] = Page(pages_[block], pages_[block] + layout_.page_bytes());
    published_tokens_.insert(published_tokens_.end(), tokens.begin(), tokens.end());
  }
  void Finish() override { fresh_.Finish(); }
  const PrefixLoad& load() const override { return load_; }

  int64_t lost_layer_ = 1 << 30;
  int64_t num_left_ = 0;
  int64_t passes_left_ = 1 << 30;  // until the loaded pages are no longer intact
  std::vector<int64_t> layers_waited_;
  Pages published_;
  std::vector<uint32_t> published_tokens_;

 private:
  const KvLayout layout_;
  const Pages& stored_;
  HostPages memory_;
  PrivatePages fresh_;
  PrefixLoad load_;
  std::map<int64_t, std::byte*> pages_;
};

inline std::vector<uint32_t> RandomTokens(int64_t count, int64_t vocab) {
  std::mt19937 generator(7);
  std::vector<uint32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(generator() % static_cast<uint32_t>(vocab));
  return tokens;
}

struct Outcome {
  GenerateResult result;
  std::vector<float> logits;  // of every step, one behind the other
  Pages published;
};

inline Outcome RunGenerate(Backend& backend, TestCache& cache, const GenerateRequest& request) {
  Outcome outcome;
  const GenerateObserver observer{
      .on_prefill = {}, .on_token = {}, .on_logits = [&outcome](std::span<const float> logits) {
        outcome.logits.insert(outcome.logits.end(), logits.begin(), logits.end());
      }};
  auto result = Generate(backend, cache, request, observer);
  EXPECT_TRUE(result.ok()) << result.status();
  if (result.ok()) outcome.result = *std::move(result);
  outcome.published = std::move(cache.published_);
  return outcome;
}

inline Outcome RunCold(Backend& backend, const GenerateRequest& request) {
  const Pages none;
  TestCache cache(backend.kv_layout(), none, 0);
  return RunGenerate(backend, cache, request);
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline RandomModel Llama() {
  return {.rope_scaling = {{"rope_type", "llama3"},
                           {"factor", 8.0},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 64}}};
}
inline RandomModel Qwen2() {
  return {.family = "qwen2", .heads = 4, .kv_heads = 2, .vocab = 64, .dtype = "F32"};
}
inline RandomModel Qwen3() {
  return {.family = "qwen3", .heads = 3, .kv_heads = 3, .head_dim = 32, .tied = false};
}

// Shapes that divide badly: seven experts of which three are chosen, widths beside the vector size.
inline RandomModel Qwen3Moe() {
  return {.family = "qwen3_moe",
          .heads = 4,
          .kv_heads = 2,
          .tied = false,
          .experts = {.count = 7, .per_token = 3, .intermediate = 40, .is_normalized = true}};
}
inline RandomModel DeepseekV2() {
  return {.family = "deepseek_v2",
          .layers = 3,
          .heads = 3,
          .kv_heads = 3,
          .tied = false,
          .rope_scaling = {{"type", "yarn"},
                           {"factor", 4.0},
                           {"original_max_position_embeddings", 64},
                           {"mscale", 1.0},
                           {"mscale_all_dim", 0.707}},
          .experts = {.count = 5,
                      .per_token = 2,
                      .intermediate = 24,
                      .shared = 2,
                      .dense_layers = 1,
                      .scale = 1.5},
          .latent = {.kv_rank = 32, .nope_dim = 20, .rope_dim = 16, .value_dim = 12}};
}

struct FamilyCase {
  const char* name;
  RandomModel (*model)();
  KvDtype kv_dtype;
};

}  // namespace kvstore::engine
