// Whatever goes into one batch with a sequence changes none of its bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "engine_adapter/llama/sequence.h"
#include "engine_adapter/llama_cpu/test_generation.h"

namespace kvstore::engine {
namespace {

class BatchOfEachFamily : public testing::TestWithParam<FamilyCase> {};
INSTANTIATE_TEST_SUITE_P(Families, BatchOfEachFamily,
                         testing::Values(FamilyCase{"Llama", Llama, KvDtype::kBf16},
                                         FamilyCase{"Qwen2", Qwen2, KvDtype::kF32},
                                         FamilyCase{"Qwen3", Qwen3, KvDtype::kBf16},
                                         FamilyCase{"Qwen3Moe", Qwen3Moe, KvDtype::kBf16},
                                         FamilyCase{"DeepseekV2", DeepseekV2, KvDtype::kBf16}),
                         [](const auto& param) { return std::string(param.param.name); });

// Fourteen requests: more than one product of logits holds, with prompts from one token to several
// pieces of attention, some with loaded blocks.
constexpr int64_t kPromptTokens[] = {1, 2, 15, 16, 17, 33, 64, 90, 100, 130, 150, 200, 224, 224};
constexpr int64_t kLoadedBlocks[] = {0, 0, 0, 1, 1, 0, 4, 2, 0, 8, 3, 0, 14, 5};

struct Member {
  GenerateRequest request;
  Outcome alone;
  std::unique_ptr<TestCache> cache;
  std::unique_ptr<Sequence> sequence;
  std::vector<float> logits;
};

std::vector<Member> MakeMembers(const LoadedModel& model, Backend& backend) {
  std::vector<Member> members(std::size(kPromptTokens));
  const auto tokens = RandomTokens(400, model.config.vocab_size);
  for (size_t i = 0; i < members.size(); ++i) {
    Member& member = members[i];
    // Different prompts: each starts at another place.
    const auto first = tokens.begin() + static_cast<int64_t>(i * 7);
    member.request.prompt_ids.assign(first, first + kPromptTokens[i]);
    member.request.max_tokens = 3 + static_cast<int64_t>(i) * 3;
    member.alone = RunCold(backend, member.request);
    member.cache =
        std::make_unique<TestCache>(backend.kv_layout(), member.alone.published, kLoadedBlocks[i]);
  }
  return members;
}

// One step of a random set of members with a random share of the rows each.
void RunStep(Backend& backend, std::vector<Member>& members, std::mt19937& random) {
  std::vector<Member*> chosen;
  std::vector<ForwardPass> passes;
  int64_t rows = backend.pass_tokens_max();
  for (Member& member : members) {
    Sequence& sequence = *member.sequence;
    if (rows == 0 || sequence.IsDone() || random() % 4 == 0) continue;
    const int64_t share = 1 + static_cast<int64_t>(random()) % rows;
    auto pass = sequence.NextPass(share);
    ASSERT_TRUE(pass.ok()) << pass.status();
    rows -= static_cast<int64_t>(pass->token_ids.size());
    passes.push_back(*std::move(pass));
    chosen.push_back(&member);
  }
  if (passes.empty()) return;
  const absl::Status status = backend.ForwardBatch(passes);
  for (Member* member : chosen) {
    ASSERT_TRUE(member->sequence->EndPass(status).ok());
    if (!member->sequence->HasLogits()) continue;
    const auto logits = member->sequence->logits();
    member->logits.insert(member->logits.end(), logits.begin(), logits.end());
    member->sequence->ChooseToken();
  }
}

TEST_P(BatchOfEachFamily, AnyBatchMixGivesEverySequenceItsOwnBits) {
  const LoadedModel model(GetParam().model());
  for (const int threads : {1, 2}) {
    const auto backend = model.MakeBackend(
        {.kv_dtype = GetParam().kv_dtype, .num_threads = threads, .pass_tokens_max = 96});
    std::vector<Member> members = MakeMembers(model, *backend);
    for (Member& member : members) {
      auto sequence = Sequence::Create(*backend, *member.cache, member.request, nullptr);
      ASSERT_TRUE(sequence.ok()) << sequence.status();
      member.sequence = *std::move(sequence);
      member.sequence->LoadPrefix();
      ASSERT_TRUE(member.sequence->WaitLoaded().ok());
    }
    std::mt19937 random(static_cast<uint32_t>(threads));
    const auto is_done = [](const Member& member) { return member.sequence->IsDone(); };
    while (!std::all_of(members.begin(), members.end(), is_done)) {
      ASSERT_NO_FATAL_FAILURE(RunStep(*backend, members, random));
    }
    for (size_t i = 0; i < members.size(); ++i) {
      const Member& member = members[i];
      EXPECT_TRUE(SameBits(member.logits, member.alone.logits)) << i;
      EXPECT_EQ(member.sequence->reused_tokens(),
                std::min(kLoadedBlocks[i] * kBlockTokens, kPromptTokens[i] - 1));
      for (const auto& [block, page] : member.cache->published_) {
        EXPECT_TRUE(page == member.alone.published.at(block)) << i << ", block " << block;
      }
      EXPECT_EQ(static_cast<int64_t>(member.cache->published_.size()) + kLoadedBlocks[i],
                static_cast<int64_t>(member.alone.published.size()));
    }
  }
}

TEST(SequenceLoad, BlocksLostBeforeTheyArriveAreComputedInTheBatch) {
  const LoadedModel model(Llama());
  const auto backend = model.MakeBackend({.pass_tokens_max = 32});
  GenerateRequest request;
  request.prompt_ids = RandomTokens(100, model.config.vocab_size);
  request.max_tokens = 2;
  const Outcome cold = RunCold(*backend, request);
  TestCache cache(backend->kv_layout(), cold.published, 6);
  cache.lost_layer_ = 1;
  cache.num_left_ = 2;
  auto sequence = *Sequence::Create(*backend, cache, request, nullptr);
  sequence->LoadPrefix();
  ASSERT_TRUE(sequence->WaitLoaded().ok());
  EXPECT_EQ(sequence->reused_tokens(), 2 * kBlockTokens);
  while (!sequence->HasLogits()) {
    const ForwardPass pass = *sequence->NextPass(32);
    EXPECT_FALSE(pass.layer_gate);
    ASSERT_TRUE(sequence->EndPass(backend->ForwardBatch({&pass, 1})).ok());
  }
  const std::vector<float> first(cold.logits.begin(),
                                 cold.logits.begin() + model.config.vocab_size);
  EXPECT_TRUE(SameBits({sequence->logits().begin(), sequence->logits().end()}, first));
}

TEST(ForwardBatch, RefusesTooManyRowsAndGatesInCompany) {
  const LoadedModel model(Llama());
  const auto backend = model.MakeBackend({.pass_tokens_max = 32});
  GenerateRequest request;
  request.prompt_ids = RandomTokens(30, model.config.vocab_size);
  PrivatePages pages(backend->page_memory());
  auto sequence = *Sequence::Create(*backend, pages, request, nullptr);
  ForwardPass pass = *sequence->NextPass(32);
  const std::vector<ForwardPass> twice = {pass, pass};
  EXPECT_EQ(backend->ForwardBatch(twice).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->ForwardBatch({}).code(), absl::StatusCode::kInvalidArgument);
  pass.token_ids = pass.token_ids.first(1);
  pass.layer_gate = [](int64_t) { return true; };
  const std::vector<ForwardPass> gated = {pass, pass};
  EXPECT_EQ(backend->ForwardBatch(gated).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvstore::engine
