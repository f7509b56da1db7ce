// The engine on cuda:0 with the pages of a real daemon: bits do not depend on what was reused, from
// where; faults are recomputed. Skipped, visibly, where there is no device that it runs on.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine_adapter/connector/store_pages.h"
#include "engine_adapter/connector_cuda/cuda_page_mover.h"
#include "engine_adapter/llama/generate.h"
#include "engine_adapter/llama/test_model_files.h"
#include "engine_adapter/llama/test_random_model.h"
#include "engine_adapter/llama_cuda/cuda_backend.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using engine::BlockSource;
using engine::GenerateRequest;
using engine::GenerateResult;
using engine::KvLayout;
using engine::PageMemory;
using engine::PrivatePages;
using engine::StorePages;

constexpr int64_t kBlockTokens = 64, kBlocks = 6, kTail = 17;

struct Outcome {
  GenerateResult result;
  std::vector<float> logits;  // of every step
};

bool SameBits(const Outcome& a, const Outcome& b) {
  return a.result.output_ids == b.result.output_ids && a.logits.size() == b.logits.size() &&
         std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
}

class CudaEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0, major = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device";
    ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
    if (major != 9) GTEST_SKIP() << "no device of compute capability 9.0";
    ASSERT_NO_FATAL_FAILURE(MakeBackend());
    ASSERT_NO_FATAL_FAILURE(daemon_.Start(
        {.sets = {"tier.gpu.device=cuda:0", "tier.gpu.bytes=256MiB", "tier.dram.bytes=256MiB",
                  absl::StrCat("tier.nvme.dirs=", daemon_.folder(), "/nvme"),
                  "tier.nvme.bytes=512MiB"}}));
    spec_.model = "random";
    spec_.weights_revision = "1";
    spec_.kv_dtype = "bf16";
    spec_.layout = std::string(layout().name());
    spec_.layout_version = layout().version();
    spec_.numerics = std::string(backend_->numerics_class());
    spec_.block_tokens = static_cast<uint32_t>(kBlockTokens);
    spec_.shape = {.num_slices = static_cast<uint32_t>(layout().num_layers),
                   .slice_bytes = static_cast<uint32_t>(layout().slice_bytes())};
    connection_ = Connect();
    ASSERT_TRUE(connection_->Use().ok()) << connection_->Use().status();
  }
  void MakeBackend() {
    engine::RandomModelWriter({.layers = 5,
                               .hidden = 256,
                               .intermediate = 512,
                               .heads = 8,
                               .head_dim = 128,
                               .vocab = 1000,
                               .positions = 4096},
                              42)
        .Write(folder_.path());
    config_ = *engine::ReadModelConfig(folder_.path());
    weights_.emplace(*engine::ModelWeights::Open(folder_.path(), config_));
    auto backend = engine::CreateCudaBackend(config_, *weights_, {.block_tokens = kBlockTokens});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    auto mover = engine::CudaPageMover::Create({.context = backend_->context(),
                                                .addresses = backend_->addresses(),
                                                .compute_stream = backend_->stream(),
                                                .layout = layout(),
                                                .multiprocessors = backend_->multiprocessors(),
                                                .make_checksums = engine::MakeKernelChecksums()});
    ASSERT_TRUE(mover.ok()) << mover.status();
    mover_ = *std::move(mover);
  }
  std::shared_ptr<engine::StoreConnection> Connect() {
    return engine::StoreConnection::Open({.target = daemon_.target(),
                                          .namespace_name = "random",
                                          .spec = spec_,
                                          .device_slabs = mover_->device_slabs()});
  }
  const KvLayout& layout() const { return backend_->kv_layout(); }

  Outcome Run(engine::PrefixCache& cache, const std::vector<uint32_t>& prompt) {
    Outcome outcome;
    const engine::GenerateObserver observer{
        .on_prefill = {}, .on_token = {}, .on_logits = [&outcome](std::span<const float> logits) {
          outcome.logits.insert(outcome.logits.end(), logits.begin(), logits.end());
        }};
    const GenerateRequest request{.prompt_ids = prompt, .max_tokens = 5};
    auto result = engine::Generate(*backend_, cache, request, observer);
    EXPECT_TRUE(result.ok()) << result.status();
    if (result.ok()) outcome.result = *std::move(result);
    return outcome;
  }
  Outcome RunAlone(const std::vector<uint32_t>& prompt) {
    PrivatePages pages(backend_->page_memory(), PageMemory::Fill::kNan);
    return Run(pages, prompt);
  }
  Outcome RunWithStore(const std::vector<uint32_t>& prompt) {
    StorePages pages(layout(), connection_, backend_->page_memory(), *mover_);
    return Run(pages, prompt);
  }
  // The first `blocks` blocks of `common`, then others.
  static std::vector<uint32_t> Prompt(const std::vector<uint32_t>& common, int64_t blocks,
                                      uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint32_t> prompt(common.begin(), common.begin() + blocks * kBlockTokens);
    while (static_cast<int64_t>(prompt.size()) < kBlocks * kBlockTokens + kTail)
      prompt.push_back(random() % 1000);
    return prompt;
  }
  void WaitUntilWritten() {
    ASSERT_TRUE(Eventually(absl::Seconds(20), [this] {
      const v1::StatusResponse status = daemon_.Status();
      uint64_t most = 0, fewest = UINT64_MAX, in_flight = 0;
      for (const v1::TierStatus& tier : status.tiers()) {
        most = std::max(most, tier.pages());
        if (tier.tier() == v1::TIER_NVME) fewest = tier.pages();
        in_flight += tier.in_flight();
      }
      return most == fewest && in_flight == 0;
    }));
  }
  // Every hit length, with the shared blocks in that tier.
  void ExpectSameBitsFrom(BlockSource source, const std::vector<uint32_t>& common) {
    for (int64_t blocks = 1; blocks <= kBlocks; ++blocks) {
      SCOPED_TRACE(absl::StrCat(blocks, " blocks from ", std::string(BlockSourceName(source))));
      WaitUntilWritten();
      for (const v1::Tier tier : {v1::TIER_GPU, v1::TIER_DRAM}) {
        const bool is_hotter =
            source == BlockSource::kNvme || (source == BlockSource::kDram && tier == v1::TIER_GPU);
        if (!is_hotter) continue;
        EXPECT_EQ(daemon_.Evict("random", tier).skipped_blocks(), 0u);
      }
      const std::vector<uint32_t> prompt = Prompt(
          common, blocks, static_cast<uint32_t>(source) * 100 + static_cast<uint32_t>(blocks));
      const Outcome cold = RunAlone(prompt), hit = RunWithStore(prompt);
      EXPECT_EQ(hit.result.reused_tokens, blocks * kBlockTokens);
      EXPECT_EQ(hit.result.load.blocks_by_source[static_cast<size_t>(source)], blocks);
      EXPECT_TRUE(hit.result.load.failures.empty()) << hit.result.load.failures.begin()->first;
      EXPECT_TRUE(SameBits(hit, cold));
    }
  }

  engine::TempFolder folder_;
  engine::ModelConfig config_;
  std::optional<engine::ModelWeights> weights_;
  std::unique_ptr<engine::CudaBackend> backend_;
  std::unique_ptr<engine::CudaPageMover> mover_;
  DaemonProcess daemon_;
  NamespaceSpec spec_;
  std::shared_ptr<engine::StoreConnection> connection_;
};

TEST_F(CudaEngine, LogitsAreThoseOfAColdRunForEveryHitFromEveryTier) {
  const std::vector<uint32_t> common = Prompt({}, 0, 1);
  const Outcome cold = RunAlone(common), saved = RunWithStore(common);
  EXPECT_TRUE(SameBits(cold, saved));
  EXPECT_EQ(saved.result.reused_tokens, 0);
  ExpectSameBitsFrom(BlockSource::kGpu, common);
  ExpectSameBitsFrom(BlockSource::kDram, common);
  ExpectSameBitsFrom(BlockSource::kNvme, common);
}

TEST_F(CudaEngine, GpuHitsOutliveTheirEngineAndMoveNothing) {
  const std::vector<uint32_t> prompt = Prompt({}, 0, 2);
  const Outcome saved = RunWithStore(prompt);
  connection_.reset();
  mover_.reset();
  backend_.reset();
  ASSERT_NO_FATAL_FAILURE(MakeBackend());
  connection_ = Connect();
  const Outcome hit = RunWithStore(prompt);
  EXPECT_EQ(hit.result.load.blocks_by_source[static_cast<size_t>(BlockSource::kGpu)], kBlocks);
  EXPECT_EQ(hit.result.load.bytes_loaded, 0u);
  EXPECT_TRUE(SameBits(saved, hit));
}

TEST_F(CudaEngine, ADaemonThatDiesUnderTheEngineCostsOnlyRecomputation) {
  const std::vector<uint32_t> prompt = Prompt({}, 0, 3);
  const Outcome cold = RunAlone(prompt);
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(SameBits(RunWithStore(prompt), cold));
    std::thread killer([&] {
      absl::SleepFor(absl::Milliseconds(1 + 2 * round));
      daemon_.KillHard();
    });
    EXPECT_TRUE(SameBits(RunWithStore(prompt), cold));
    killer.join();
    EXPECT_TRUE(SameBits(RunWithStore(prompt), cold)) << "with no daemon";
    ASSERT_NO_FATAL_FAILURE(daemon_.Start(
        {.sets = {"tier.gpu.device=cuda:0", "tier.gpu.bytes=256MiB", "tier.dram.bytes=256MiB"}}));
    connection_ = Connect();
  }
}

}  // namespace
}  // namespace kvstore::testing
