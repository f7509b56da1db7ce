#include "engine_adapter/llama/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "engine_adapter/llama_cpu/cpu_backend.h"
#include "engine_adapter/llama_cpu/test_generation.h"
#include "engine_adapter/llama_cpu/test_reference.h"

namespace kvstore::engine {
namespace {

class EachFamily : public testing::TestWithParam<FamilyCase> {};
INSTANTIATE_TEST_SUITE_P(Families, EachFamily,
                         testing::Values(FamilyCase{"Llama", Llama, KvDtype::kBf16},
                                         FamilyCase{"Qwen2", Qwen2, KvDtype::kF32},
                                         FamilyCase{"Qwen3", Qwen3, KvDtype::kBf16},
                                         FamilyCase{"Qwen3Moe", Qwen3Moe, KvDtype::kBf16},
                                         FamilyCase{"DeepseekV2", DeepseekV2, KvDtype::kBf16}),
                         [](const auto& param) { return std::string(param.param.name); });

TEST_P(EachFamily, AgreesWithTheTextbookInDouble) {
  const LoadedModel model(GetParam().model());
  const auto backend = model.MakeBackend({.kv_dtype = KvDtype::kF32, .num_threads = 2});
  GenerateRequest request;
  request.prompt_ids = RandomTokens(150, model.config.vocab_size);
  request.max_tokens = 4;
  const Outcome outcome = RunCold(*backend, request);
  std::vector<uint32_t> tokens = request.prompt_ids;
  tokens.insert(tokens.end(), outcome.result.output_ids.begin(), outcome.result.output_ids.end());
  const auto expected = ReferenceModel(model.config, *model.weights).Logits(tokens);
  const auto vocab = static_cast<size_t>(model.config.vocab_size);
  for (size_t step = 0; step < outcome.result.output_ids.size(); ++step) {
    const std::vector<double>& row = expected[request.prompt_ids.size() - 1 + step];
    for (size_t i = 0; i < vocab; ++i) {
      // Logits are of size 1 to 10; float32 through two layers.
      ASSERT_NEAR(outcome.logits[step * vocab + i], row[i], 5e-4) << "step " << step;
    }
  }
}

// The promise of the engine: reuse, pass size and threads change no bit of the keys, values and
// logits.
TEST_P(EachFamily, EveryHitLengthPassSizeAndThreadCountGivesTheSameBits) {
  const LoadedModel model(GetParam().model());
  GenerateRequest request;
  request.prompt_ids = RandomTokens(kHitBlocks * kBlockTokens, model.config.vocab_size);
  request.max_tokens = 3;
  const auto whole_backend = model.MakeBackend(
      {.kv_dtype = GetParam().kv_dtype, .num_threads = 1, .pass_tokens_max = 256});
  const Outcome whole = RunCold(*whole_backend, request);
  ASSERT_EQ(whole.published.size(), size_t{kHitBlocks});
  for (const float logit : whole.logits) ASSERT_TRUE(std::isfinite(logit));
  for (const int64_t pass_tokens : {16, 48, 256}) {
    for (const int threads : {1, 2}) {
      const auto backend = model.MakeBackend({.kv_dtype = GetParam().kv_dtype,
                                              .num_threads = threads,
                                              .pass_tokens_max = pass_tokens});
      for (int64_t hit = 0; hit <= kHitBlocks; ++hit) {
        TestCache cache(backend->kv_layout(), whole.published, hit);
        const Outcome outcome = RunGenerate(*backend, cache, request);
        EXPECT_TRUE(SameBits(outcome.logits, whole.logits))
            << "hit " << hit << " pass " << pass_tokens << " threads " << threads;
        EXPECT_EQ(outcome.published.size(), static_cast<size_t>(kHitBlocks - hit));
        for (const auto& [block, page] : outcome.published) {
          EXPECT_TRUE(page == whole.published.at(block)) << "block " << block << " hit " << hit;
        }
        EXPECT_EQ(outcome.result.reused_tokens,
                  std::min(hit * kBlockTokens, kHitBlocks * kBlockTokens - 1));
      }
    }
  }
}

// A lease that is lost while its pages are in use: what they held meanwhile must not show anywhere.
TEST_P(EachFamily, PagesLostDuringAPassAreComputedAgain) {
  const LoadedModel model(GetParam().model());
  const auto backend =
      model.MakeBackend({.kv_dtype = GetParam().kv_dtype, .num_threads = 2, .pass_tokens_max = 48});
  GenerateRequest request;
  request.prompt_ids = RandomTokens(kHitBlocks * kBlockTokens, model.config.vocab_size);
  request.max_tokens = 3;
  const Outcome whole = RunCold(*backend, request);
  for (const int64_t passes : {0, 1, 2}) {
    Pages pages = whole.published;
    TestCache cache(backend->kv_layout(), pages, 7);
    cache.passes_left_ = passes;
    if (passes == 0) std::memset(pages.at(3).data(), 0x55, pages.at(3).size());
    const Outcome outcome = RunGenerate(*backend, cache, request);
    EXPECT_TRUE(SameBits(outcome.logits, whole.logits)) << passes;
    EXPECT_EQ(outcome.result.output_ids, whole.result.output_ids) << passes;
    EXPECT_EQ(outcome.result.reused_tokens, 0) << passes;
  }
}

TEST_P(EachFamily, DecodeWritesTheBitsThatPrefillWouldWrite) {
  const LoadedModel model(GetParam().model());
  const auto backend = model.MakeBackend({.kv_dtype = GetParam().kv_dtype, .num_threads = 2});
  GenerateRequest request;
  request.prompt_ids = RandomTokens(21, model.config.vocab_size);
  request.max_tokens = 46;  // 21 + 45 computed tokens: four whole blocks and two tokens
  const Outcome decoded = RunCold(*backend, request);
  ASSERT_EQ(decoded.result.output_ids.size(), 46u);
  GenerateRequest longer = request;
  longer.prompt_ids.insert(longer.prompt_ids.end(), decoded.result.output_ids.begin(),
                           decoded.result.output_ids.end() - 1);
  longer.max_tokens = 1;
  const Outcome prefilled = RunCold(*backend, longer);
  ASSERT_EQ(decoded.published.size(), 4u);
  EXPECT_TRUE(decoded.published == prefilled.published);
  const std::vector<float> last_logits(decoded.logits.end() - model.config.vocab_size,
                                       decoded.logits.end());
  EXPECT_TRUE(SameBits(last_logits, prefilled.logits));
}

TEST_P(EachFamily, BlockTokensAndInstructionSetChangeNoLogit) {
  const LoadedModel model(GetParam().model());
  GenerateRequest request;
  request.prompt_ids = RandomTokens(140, model.config.vocab_size);
  request.max_tokens = 2;
  const Outcome expected = RunCold(*model.MakeBackend({.kv_dtype = GetParam().kv_dtype}), request);
  for (const int64_t block_tokens : {1, 24, 256}) {
    const auto backend =
        model.MakeBackend({.block_tokens = block_tokens, .kv_dtype = GetParam().kv_dtype});
    EXPECT_TRUE(SameBits(RunCold(*backend, request).logits, expected.logits)) << block_tokens;
  }
  for (const auto isa :
       {kernels::CpuIsa::kScalar, kernels::CpuIsa::kAvx2, kernels::CpuIsa::kAvx512}) {
    if (kernels::KernelsFor(isa) == nullptr) continue;
    const auto backend =
        model.MakeBackend({.kv_dtype = GetParam().kv_dtype, .kernels = kernels::KernelsFor(isa)});
    EXPECT_TRUE(SameBits(RunCold(*backend, request).logits, expected.logits));
  }
}

// More rows than are routed to experts at a time, and more than one piece of rows at an expert.
TEST(ExpertFeedForward, LongPassesGiveTheBitsOfShortOnes) {
  RandomModel moe = Qwen3Moe();
  moe.positions = 1024;
  const LoadedModel model(moe);
  GenerateRequest request;
  request.prompt_ids = RandomTokens(700, model.config.vocab_size);
  const Outcome whole = RunCold(*model.MakeBackend({.pass_tokens_max = 1024}), request);
  const Outcome parts = RunCold(*model.MakeBackend({.pass_tokens_max = 100}), request);
  EXPECT_TRUE(SameBits(whole.logits, parts.logits));
  EXPECT_TRUE(whole.published == parts.published);
}

// Experts that no row of a pass chooses, and experts that every row chooses.
TEST(ExpertFeedForward, ManyExpertsForFewRowsAndAllExpertsForEach) {
  RandomModel many = Qwen3Moe(), all = Qwen3Moe();
  many.experts.count = 90;
  all.experts.per_token = all.experts.count;
  for (const RandomModel& shape : {many, all}) {
    const LoadedModel model(shape);
    const auto backend = model.MakeBackend({.kv_dtype = KvDtype::kF32});
    GenerateRequest request;
    request.prompt_ids = RandomTokens(20, model.config.vocab_size);
    request.max_tokens = 1;
    const Outcome outcome = RunCold(*backend, request);
    const auto expected = ReferenceModel(model.config, *model.weights).Logits(request.prompt_ids);
    for (size_t i = 0; i < outcome.logits.size(); ++i) {
      ASSERT_NEAR(outcome.logits[i], expected.back()[i], 5e-4);
    }
  }
}

class GenerateTest : public testing::Test {
 protected:
  GenerateTest() : model_(Llama()), backend_(model_.MakeBackend({.pass_tokens_max = 32})) {
    request_.prompt_ids = RandomTokens(100, model_.config.vocab_size);
    request_.max_tokens = 4;
  }

  absl::Status Error(const GenerateRequest& request) {
    PrivatePages cache(backend_->page_memory());
    return Generate(*backend_, cache, request, {}).status();
  }

  LoadedModel model_;
  std::unique_ptr<Backend> backend_;
  GenerateRequest request_;
};

TEST_F(GenerateTest, BlocksLostInAnyLayerAreComputedAgain) {
  const Outcome cold = RunCold(*backend_, request_);
  // A lost block's page may hold anything.
  Pages damaged = cold.published;
  for (int64_t block = 2; block < 6; ++block) {
    std::fill(damaged[block].begin(), damaged[block].end(), std::byte{0xff});
  }
  for (int64_t lost_layer = 0; lost_layer < 2; ++lost_layer) {
    for (const int64_t num_left : {0, 2}) {
      TestCache cache(backend_->kv_layout(), damaged, 6);
      cache.lost_layer_ = lost_layer;
      cache.num_left_ = num_left;
      const Outcome outcome = RunGenerate(*backend_, cache, request_);
      EXPECT_TRUE(SameBits(outcome.logits, cold.logits));
      EXPECT_EQ(outcome.result.reused_tokens, num_left * kBlockTokens);
      ASSERT_EQ(outcome.published.size(), static_cast<size_t>(6 - num_left));
      for (const auto& [block, page] : outcome.published) {
        EXPECT_TRUE(page == cold.published.at(block)) << block;
      }
    }
  }
}

TEST_F(GenerateTest, WaitsForEveryLayerOnceInOrderBeforeReadingIt) {
  const Outcome cold = RunCold(*backend_, request_);
  TestCache cache(backend_->kv_layout(), cold.published, 3);
  RunGenerate(*backend_, cache, request_);
  EXPECT_THAT(cache.layers_waited_, testing::ElementsAre(0, 1));
}

TEST_F(GenerateTest, AFullHitLeavesTheLoadedPagesAlone) {
  request_.prompt_ids.resize(6 * kBlockTokens);
  const Outcome cold = RunCold(*backend_, request_);
  const Pages before = cold.published;
  TestCache cache(backend_->kv_layout(), cold.published, 6);
  const Outcome warm = RunGenerate(*backend_, cache, request_);
  EXPECT_TRUE(cold.published == before);
  EXPECT_TRUE(SameBits(warm.logits, cold.logits));
  EXPECT_EQ(warm.result.reused_tokens, 6 * kBlockTokens - 1);
}

TEST_F(GenerateTest, PublishesBlocksWithTheirTokensInOrder) {
  request_.prompt_ids.resize(40);
  request_.max_tokens = 12;
  const Pages none;
  TestCache cache(backend_->kv_layout(), none, 0);
  const Outcome outcome = RunGenerate(*backend_, cache, request_);
  std::vector<uint32_t> expected = request_.prompt_ids;
  expected.insert(expected.end(), outcome.result.output_ids.begin(),
                  outcome.result.output_ids.end());
  expected.resize(48);
  EXPECT_EQ(cache.published_tokens_, expected);
}

TEST_F(GenerateTest, StopsAtAnEndToken) {
  const Outcome free_run = RunCold(*backend_, request_);
  LoadedModel stopping(Llama());
  stopping.config.eos_token_ids = {free_run.result.output_ids[1]};
  const Outcome stopped = RunCold(*stopping.MakeBackend(), request_);
  EXPECT_THAT(stopped.result.output_ids,
              testing::ElementsAre(free_run.result.output_ids[0], free_run.result.output_ids[1]));
}

TEST_F(GenerateTest, SamplingRepeatsWithItsSeed) {
  request_.max_tokens = 20;
  request_.sampling = {.temperature = 2.0f, .top_k = 50, .top_p = 0.95f};
  request_.seed = 1;
  const Outcome first = RunCold(*backend_, request_), again = RunCold(*backend_, request_);
  request_.seed = 2;
  const Outcome other = RunCold(*backend_, request_);
  EXPECT_EQ(first.result.output_ids, again.result.output_ids);
  EXPECT_NE(first.result.output_ids, other.result.output_ids);
}

TEST_F(GenerateTest, RefusesWhatTheModelCannotDo) {
  GenerateRequest empty = request_, outside = request_, none = request_, long_output = request_;
  empty.prompt_ids.clear();
  outside.prompt_ids[50] = 101;
  none.max_tokens = 0;
  long_output.max_tokens = 512 - 100 + 2;
  for (const GenerateRequest& request : {empty, outside, none, long_output}) {
    EXPECT_EQ(Error(request).code(), absl::StatusCode::kInvalidArgument);
  }
  long_output.max_tokens = 512 - 100 + 1;
  EXPECT_TRUE(Error(long_output).ok());
}

TEST(CpuBackend, RefusesBadOptions) {
  const LoadedModel model(Llama());
  for (const CpuBackendOptions& options :
       {CpuBackendOptions{.block_tokens = 0}, CpuBackendOptions{.num_threads = -1},
        CpuBackendOptions{.num_threads = 257}, CpuBackendOptions{.pass_tokens_max = 0}}) {
    EXPECT_EQ(CreateCpuBackend(model.config, *model.weights, options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(CpuBackend, RefusesLatentShapesThatTheKernelsDoNotRun) {
  RandomModel shape = DeepseekV2();
  shape.latent.kv_rank = 40;
  const LoadedModel narrow(shape);
  EXPECT_THAT(CreateCpuBackend(narrow.config, *narrow.weights, {}).status().ToString(),
              testing::HasSubstr("kv_lora_rank is 40"));
  shape.latent.kv_rank = 32;
  shape.latent.rope_dim = 8;
  const LoadedModel odd(shape);
  EXPECT_THAT(CreateCpuBackend(odd.config, *odd.weights, {}).status().ToString(),
              testing::HasSubstr("together 40; the CPU back-end needs a multiple of 16"));
}

TEST(ForwardFlops, CountsTheExpertsOfARowAndAbsorbedAttention) {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 8;
  config.intermediate_size = 16;
  config.num_heads = 2;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.vocab_size = 10;
  config.latent = {.kv_rank = 16, .nope_dim = 4, .rope_dim = 2, .value_dim = 3};
  config.experts = {.num_experts = 5,
                    .per_token = 2,
                    .intermediate_size = 4,
                    .shared_intermediate_size = 6,
                    .first_layer = 1};
  // Queries, latent vector and key 2*8*(12+18) = 480, absorbed 2*2*16*4 = 256; values made
  // 2*2*16*3 = 192, o 2*6*8 = 96; a key 2*2*(18+16) = 136. Dense 6*8*16 = 768; experts 6*8*14 =
  // 672, router 80. lm_head 160.
  EXPECT_EQ(ForwardFlops(config, 4, 1), 2 * (480 + 256 + 192 + 96 + 136 * 5) + 768 + 752 + 160);
}

TEST(ForwardFlops, CountsWhatIsComputed) {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 8;
  config.intermediate_size = 16;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.vocab_size = 10;
  // qkv 2*8*16 = 256; o 128, gate_up 512, down 256: 896; attention 32 a key; lm_head 160.
  EXPECT_EQ(ForwardFlops(config, 0, 1), 2 * (256 + 896 + 32) + 160);
  EXPECT_EQ(ForwardFlops(config, 0, 3),
            (3 * (256 + 896) + 32 * 6) + (3 * 256 + 896 + 32 * 3) + 160);
  EXPECT_EQ(ForwardFlops(config, 2, 1), 2 * (256 + 896 + 32 * 3) + 160);
}

}  // namespace
}  // namespace kvstore::engine
