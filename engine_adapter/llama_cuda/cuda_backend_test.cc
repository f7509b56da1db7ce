// The CUDA back-end against the CPU one, and against itself: bytes of keys and values, and logits,
// however a prompt is cut, however much of it was there already.
#include "engine_adapter/llama_cuda/cuda_backend.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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
namespace {

using Bytes = std::vector<std::byte>;
using Pages = std::map<int64_t, Bytes>;

constexpr int64_t kBlockTokens = 64;

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
  std::unique_ptr<Backend> OnDevice(int64_t pass_tokens_max) const {
    auto backend = CreateCudaBackend(
        config, *weights, {.block_tokens = kBlockTokens, .pass_tokens_max = pass_tokens_max});
    EXPECT_TRUE(backend.ok()) << backend.status();
    return backend.ok() ? *std::move(backend) : nullptr;
  }

  TempFolder folder;
  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
};

// Gives the leading `num_loaded` of `stored`, copied to pages of the device, NaN pages for the rest,
// and keeps copies of what is published.
class DeviceCache final : public PrefixCache {
 public:
  DeviceCache(Backend& backend, const Pages& stored, int64_t num_loaded)
      : page_bytes_(static_cast<size_t>(backend.kv_layout().page_bytes())),
        fresh_(backend.page_memory(), PageMemory::Fill::kNan) {
    load_.num_blocks = num_loaded;
    for (int64_t block = 0; block < num_loaded; ++block) {
      auto page = backend.page_memory().Allocate(PageMemory::Fill::kNan);
      EXPECT_TRUE(page.ok()) << page.status();
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      EXPECT_EQ(
          cudaMemcpy(page->get(), stored.at(block).data(), page_bytes_, cudaMemcpyHostToDevice),
          cudaSuccess);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // the copy returns before it is done
      loaded_.push_back(*std::move(page));
    }
  }
  PrefixLoad LoadPrefix(std::span<const uint32_t>) override { return load_; }
  const std::byte* LoadedPage(int64_t block) const override {
    return loaded_[static_cast<size_t>(block)].get();
  }
  int64_t WaitReady(int64_t) override { return load_.num_blocks; }
  bool IsIntact() override { return true; }
  absl::StatusOr<std::byte*> NewPage(int64_t block) override {
    auto page = fresh_.NewPage(block);
    if (page.ok()) pages_[block] = *page;
    return page;
  }
  void PublishPage(int64_t block, std::span<const uint32_t>) override {
    published_[block] = Download(pages_[block]);
  }
  void Finish() override {
    for (size_t i = 0; i < loaded_.size(); ++i) loaded_bytes_.push_back(Download(loaded_[i].get()));
    loaded_.clear();
    fresh_.Finish();
  }
  const PrefixLoad& load() const override { return load_; }

  Pages published_;
  std::vector<Bytes> loaded_bytes_;  // as they were at the end

 private:
  Bytes Download(const std::byte* page) const {
    Bytes bytes(page_bytes_);
    EXPECT_EQ(cudaMemcpy(bytes.data(), page, page_bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return bytes;
  }

  const size_t page_bytes_;
  PrivatePages fresh_;
  PrefixLoad load_;
  std::vector<PageMemory::Page> loaded_;
  std::map<int64_t, std::byte*> pages_;
};

std::vector<uint32_t> RandomTokens(int64_t count, int64_t vocab) {
  std::mt19937 generator(7);
  std::vector<uint32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(generator() % static_cast<uint32_t>(vocab));
  return tokens;
}

struct Outcome {
  GenerateResult result;
  std::vector<float> logits;  // of every step, one behind the other
};

Outcome RunGenerate(Backend& backend, PrefixCache& cache, const GenerateRequest& request) {
  Outcome outcome;
  const GenerateObserver observer{
      .on_prefill = {}, .on_token = {}, .on_logits = [&outcome](std::span<const float> logits) {
        outcome.logits.insert(outcome.logits.end(), logits.begin(), logits.end());
      }};
  auto result = Generate(backend, cache, request, observer);
  EXPECT_TRUE(result.ok()) << result.status();
  if (result.ok()) outcome.result = *std::move(result);
  return outcome;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

RandomModel Model(const std::string& family, int64_t head_dim, int64_t heads) {
  RandomModel model{.family = family,
                    .layers = 3,
                    .hidden = 256,
                    .intermediate = 512,
                    .heads = heads,
                    .kv_heads = 2,
                    .head_dim = head_dim,
                    .vocab = 1000,
                    .positions = 4096};
  if (family == "llama") {
    model.rope_scaling = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 512}};
  }
  return model;
}

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device";
    cudaDeviceProp properties;
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    if (properties.major != 9) GTEST_SKIP() << "no device of compute capability 9.0";
  }
};

// Weights are bf16 on both sides; the device rounds activations to bf16 and the CPU does not.
TEST_F(CudaBackendTest, LogitsAreNearThoseOfTheCpu) {
  for (const RandomModel& shape :
       {Model("llama", 128, 8), Model("qwen2", 64, 14), Model("qwen3", 128, 2)}) {
    SCOPED_TRACE(shape.family);
    const LoadedModel model(shape);
    const auto device = model.OnDevice(1024);
    ASSERT_NE(device, nullptr);
    auto cpu = CreateCpuBackend(model.config, *model.weights, {.block_tokens = kBlockTokens});
    ASSERT_TRUE(cpu.ok());
    GenerateRequest request{.prompt_ids = RandomTokens(1500, shape.vocab), .max_tokens = 1};
    PrivatePages device_pages(device->page_memory(), PageMemory::Fill::kNan);
    PrivatePages cpu_pages((*cpu)->page_memory());
    const Outcome ours = RunGenerate(*device, device_pages, request);
    const Outcome reference = RunGenerate(**cpu, cpu_pages, request);
    ASSERT_EQ(ours.logits.size(), reference.logits.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < ours.logits.size(); ++i) {
      error += std::pow(static_cast<double>(ours.logits[i]) - reference.logits[i], 2);
      size += std::pow(static_cast<double>(reference.logits[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / size), 0.02);  // NaN fails
  }
}

TEST_F(CudaBackendTest, BytesAndLogitsDoNotDependOnHowMuchIsReusedOrHowPassesAreCut) {
  for (const RandomModel& shape : {Model("llama", 128, 8), Model("qwen3", 64, 6)}) {
    SCOPED_TRACE(shape.family);
    const LoadedModel model(shape);
    GenerateRequest request{.prompt_ids = RandomTokens(1344, shape.vocab), .max_tokens = 70};
    const auto whole = model.OnDevice(2048);
    ASSERT_NE(whole, nullptr);
    DeviceCache cold_cache(*whole, {}, 0);
    const Outcome cold = RunGenerate(*whole, cold_cache, request);
    const Pages pages = cold_cache.published_;
    ASSERT_EQ(pages.size(), 22u);

    for (const int64_t pass_tokens : {1, 48, 64, 128, 320, 1024, 2048}) {
      const auto backend = model.OnDevice(pass_tokens);
      ASSERT_NE(backend, nullptr);
      ASSERT_EQ(backend->numerics_class(), whole->numerics_class());
      for (int64_t hit = 0; hit <= 21; hit += pass_tokens == 2048 ? 1 : 7) {
        DeviceCache cache(*backend, pages, hit);
        const Outcome outcome = RunGenerate(*backend, cache, request);
        EXPECT_TRUE(SameBits(outcome.logits, cold.logits))
            << "pass " << pass_tokens << ", hit " << hit;
        EXPECT_EQ(outcome.result.output_ids, cold.result.output_ids);
        for (const auto& [block, bytes] : cache.published_) {
          EXPECT_TRUE(bytes == pages.at(block))
              << "pass " << pass_tokens << ", hit " << hit << ", block " << block;
        }
        for (int64_t block = 0; block < hit; ++block) {
          EXPECT_TRUE(cache.loaded_bytes_[static_cast<size_t>(block)] == pages.at(block)) << block;
        }
      }
    }
  }
}

// What decode wrote is what prefill would have written.
TEST_F(CudaBackendTest, GeneratedTokensHaveTheBytesOfAPrompt) {
  const LoadedModel model(Model("llama", 128, 8));
  const auto backend = model.OnDevice(1024);
  ASSERT_NE(backend, nullptr);
  GenerateRequest request{.prompt_ids = RandomTokens(1000, 1000), .max_tokens = 153};
  DeviceCache decoded(*backend, {}, 0);
  const Outcome outcome = RunGenerate(*backend, decoded, request);
  request.prompt_ids.insert(request.prompt_ids.end(), outcome.result.output_ids.begin(),
                            outcome.result.output_ids.end() - 1);
  request.max_tokens = 1;
  DeviceCache prefilled(*backend, {}, 0);
  const Outcome again = RunGenerate(*backend, prefilled, request);
  EXPECT_EQ(decoded.published_.size(), 18u);
  EXPECT_TRUE(decoded.published_ == prefilled.published_);
  EXPECT_EQ(again.result.output_ids.front(), outcome.result.output_ids.back());
}

TEST_F(CudaBackendTest, RefusesWhatItCannotDo) {
  const LoadedModel model(Model("llama", 128, 8));
  for (const CudaBackendOptions& options :
       {CudaBackendOptions{.block_tokens = 32}, CudaBackendOptions{.pass_tokens_max = 0},
        CudaBackendOptions{.pool_tokens = -1}}) {
    EXPECT_EQ(CreateCudaBackend(model.config, *model.weights, options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  const absl::Status no_device =
      CreateCudaBackend(model.config, *model.weights, {.device = 99}).status();
  EXPECT_EQ(no_device.code(), absl::StatusCode::kUnavailable) << no_device;
  const absl::Status no_room =
      CreateCudaBackend(model.config, *model.weights, {.pool_tokens = int64_t{1} << 40}).status();
  EXPECT_EQ(no_room.code(), absl::StatusCode::kResourceExhausted) << no_room;
  // A refusal leaves the device usable.
  EXPECT_NE(model.OnDevice(64), nullptr);
}

TEST_F(CudaBackendTest, AFullPoolIsAnErrorOfTheRequest) {
  const LoadedModel model(Model("llama", 128, 8));
  auto backend =
      CreateCudaBackend(model.config, *model.weights,
                        {.block_tokens = 64, .pass_tokens_max = 128, .pool_tokens = 256});
  ASSERT_TRUE(backend.ok()) << backend.status();
  GenerateRequest request{.prompt_ids = RandomTokens(1000, 1000), .max_tokens = 1};
  PrivatePages pages((*backend)->page_memory());
  EXPECT_EQ(Generate(**backend, pages, request, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  request.prompt_ids.resize(200);
  PrivatePages fewer((*backend)->page_memory());
  EXPECT_TRUE(Generate(**backend, fewer, request, {}).ok());
}

}  // namespace
}  // namespace kvstore::engine
