// A small random model with a byte-level tokenizer, served: for tests.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine_adapter/llama/generate.h"
#include "engine_adapter/llama/test_model_files.h"
#include "engine_adapter/llama/test_random_model.h"
#include "engine_adapter/llama_cpu/cpu_backend.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "engine_adapter/tokenizer/tokenizer.h"

namespace kvstore::engine {

// A token for each byte, by the GPT-2 alphabet, then the given texts as special tokens.
inline Tokenizer ByteTokenizer(const std::vector<std::string>& specials = {}) {
  nlohmann::json vocab;
  const auto utf8 = [](uint32_t c) {
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    return std::string{static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3f))};
  };
  uint32_t others = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_own =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    vocab[utf8(is_own ? byte : others++)] = byte;
  }
  nlohmann::json added = nlohmann::json::array();
  for (size_t i = 0; i < specials.size(); ++i) {
    added.push_back({{"id", 256 + i},
                     {"content", specials[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::json file = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"},
        {"add_prefix_space", false},
        {"trim_offsets", true},
        {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  auto tokenizer = Tokenizer::Parse(file.dump(), "tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// 256 tokens, 512 positions.
struct TestModel {
  explicit TestModel(int64_t pass_tokens_max = 64) {
    RandomModelWriter({.vocab = 256}, 42).Write(folder.path());
    config = *ReadModelConfig(folder.path());
    weights = std::make_unique<ModelWeights>(*ModelWeights::Open(folder.path(), config));
    for (std::unique_ptr<Backend>* made : {&backend, &reference}) {
      *made = *CreateCpuBackend(
          config, *weights,
          {.block_tokens = 16, .num_threads = 1, .pass_tokens_max = pass_tokens_max});
    }
  }

  // What the request gets when nobody else is there.
  std::vector<uint32_t> Alone(const GenerateRequest& request) const {
    PrivatePages pages(reference->page_memory());
    auto result = Generate(*reference, pages, request, {});
    EXPECT_TRUE(result.ok()) << result.status();
    return result->output_ids;
  }

  TempFolder folder;
  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Backend> reference;  // of the test's thread: the other one may be at work
};

// A back-end that fails, or takes its time, when told. `backend` outlives it.
class FaultyBackend final : public Backend {
 public:
  explicit FaultyBackend(Backend& backend) : backend_(backend) {}

  const ModelConfig& config() const override { return backend_.config(); }
  const KvLayout& kv_layout() const override { return backend_.kv_layout(); }
  int64_t pass_tokens_max() const override { return backend_.pass_tokens_max(); }
  PageMemory& page_memory() override { return backend_.page_memory(); }
  std::string_view numerics_class() const override { return backend_.numerics_class(); }
  std::string_view device_name() const override { return backend_.device_name(); }
  absl::Status Forward(const ForwardPass& pass) override {
    absl::SleepFor(absl::Milliseconds(pass_ms.load()));
    return has_failed ? absl::UnavailableError("the device is lost") : backend_.Forward(pass);
  }

  std::atomic<bool> has_failed{false};
  std::atomic<int> pass_ms{0};

 private:
  Backend& backend_;
};

}  // namespace kvstore::engine
