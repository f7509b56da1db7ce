#include "engine_adapter/paging/page_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine_adapter/paging/timeline.h"

namespace kvstore::engine {
namespace {

constexpr KvLayout kLayout{
    .num_layers = 3, .num_kv_heads = 2, .head_dim = 16, .dtype = KvDtype::kBf16, .block_tokens = 4};

TEST(KvLayout, SlicesFillThePageLayerByLayerKeysFirst) {
  EXPECT_EQ(kLayout.slice_bytes(), 2 * 2 * 4 * 16 * 2);
  EXPECT_EQ(kLayout.page_bytes(), 3 * kLayout.slice_bytes());
  EXPECT_EQ(kLayout.k_offset(2), 2 * kLayout.slice_bytes());
  EXPECT_EQ(kLayout.v_offset(2), kLayout.k_offset(2) + kLayout.slice_bytes() / 2);
  EXPECT_EQ(kLayout.BlocksOf(4), 1);
  EXPECT_EQ(kLayout.BlocksOf(5), 2);
}

TEST(KvLayout, OfLatentAttentionKeepsOneRowATokenForKeysAndValues) {
  const KvLayout layout{.order = KvOrder::kLatent,
                        .num_layers = 27,
                        .num_kv_heads = 1,
                        .head_dim = 576,
                        .dtype = KvDtype::kBf16,
                        .block_tokens = 16};
  EXPECT_TRUE(layout.Validate().ok());
  EXPECT_EQ(layout.slice_bytes(), 16 * 576 * 2);
  EXPECT_EQ(layout.page_bytes(), 27 * layout.slice_bytes());
  EXPECT_EQ(layout.k_offset(3), 3 * layout.slice_bytes());
  EXPECT_EQ(layout.v_offset(3), layout.k_offset(3));
  EXPECT_EQ(layout.name(), "mla");
  EXPECT_EQ(kLayout.name(), "hnd");
  KvLayout two_heads = layout;
  two_heads.num_kv_heads = 2;
  EXPECT_EQ(two_heads.Validate().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KvLayout, RefusesBlocksOfNoTokens) {
  KvLayout layout = kLayout;
  layout.block_tokens = 0;
  EXPECT_EQ(layout.Validate().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(kLayout.Validate().ok());
}

// Two loaded blocks of constant bytes, then private pages.
class TwoLoadedBlocks final : public PrefixCache {
 public:
  TwoLoadedBlocks() : memory_(kLayout), fresh_(memory_) {
    load_.num_blocks = 2;
    for (auto& page : loaded_) page.resize(static_cast<size_t>(kLayout.page_bytes()));
  }
  PrefixLoad LoadPrefix(std::span<const uint32_t>) override { return load_; }
  const std::byte* LoadedPage(int64_t block) const override { return loaded_[block].data(); }
  int64_t WaitReady(int64_t) override { return 2; }
  bool IsIntact() override { return true; }
  absl::StatusOr<std::byte*> NewPage(int64_t block) override {
    asked_.push_back(block);
    return fresh_.NewPage(block);
  }
  void PublishPage(int64_t, std::span<const uint32_t>) override {}
  void Finish() override { fresh_.Finish(); }
  const PrefixLoad& load() const override { return load_; }

  std::vector<int64_t> asked_;

 private:
  PrefixLoad load_;
  std::vector<std::byte> loaded_[2];
  HostPages memory_;
  PrivatePages fresh_;
};

TEST(PageTable, WritesToLoadedBlocksGoToScratch) {
  TwoLoadedBlocks cache;
  HostPages memory(kLayout);
  auto table = PageTable::Create(kLayout, 16, memory);
  ASSERT_TRUE(table.ok());
  table->AddLoaded(cache, 2);
  ASSERT_TRUE(table->Extend(cache, 9).ok());
  ASSERT_EQ(table->num_blocks(), 3);
  EXPECT_EQ(table->read_pages()[1], cache.LoadedPage(1));
  EXPECT_NE(table->write_pages()[1], cache.LoadedPage(1));
  EXPECT_EQ(table->read_pages()[2], table->write_pages()[2]);
}

TEST(PageTable, ALostBlockGetsANewPage) {
  TwoLoadedBlocks cache;
  HostPages memory(kLayout);
  auto table = PageTable::Create(kLayout, 16, memory);
  ASSERT_TRUE(table.ok());
  table->AddLoaded(cache, 2);
  ASSERT_TRUE(table->Extend(cache, 12).ok());
  ASSERT_TRUE(table->Replace(cache, 1, 2).ok());
  EXPECT_THAT(cache.asked_, testing::ElementsAre(2, 1));
  EXPECT_EQ(table->read_pages()[0], cache.LoadedPage(0));
  EXPECT_EQ(table->read_pages()[1], table->write_pages()[1]);
}

TEST(PageTable, RefusesToGrowPastItsRoom) {
  HostPages memory(kLayout);
  PrivatePages cache(memory);
  auto table = PageTable::Create(kLayout, 8, memory);
  ASSERT_TRUE(table.ok());
  EXPECT_TRUE(table->Extend(cache, 8).ok());
  EXPECT_EQ(table->Extend(cache, 9).code(), absl::StatusCode::kInternal);
}

TEST(PrivatePages, EmptyPagesAreNanWhenAsked) {
  HostPages memory(kLayout);
  PrivatePages cache(memory, PageMemory::Fill::kNan);
  auto page = cache.NewPage(0);
  ASSERT_TRUE(page.ok());
  EXPECT_EQ((*page)[0], std::byte{0xff});
  EXPECT_EQ((*page)[kLayout.page_bytes() - 1], std::byte{0xff});
}

TEST(Timeline, WritesSpansInMicroseconds) {
  Timeline timeline;
  const Timeline::Time begin = Timeline::Now();
  timeline.Add(Timeline::Track::kLoad, "slice", 7, begin, begin + std::chrono::milliseconds(2));
  const std::string path = testing::TempDir() + "/timeline.json";
  ASSERT_TRUE(timeline.Write(path).ok());
  std::ifstream file(path);
  const nlohmann::json trace = nlohmann::json::parse(file);
  const nlohmann::json& span = trace["traceEvents"].back();
  EXPECT_EQ(span["name"], "slice");
  EXPECT_EQ(span["args"]["index"], 7);
  EXPECT_NEAR(span["dur"].get<double>(), 2000.0, 0.01);
}

TEST(Timeline, AnUnwritablePathIsAnError) {
  EXPECT_FALSE(Timeline().Write("/nonexistent-folder/t.json").ok());
}

}  // namespace
}  // namespace kvstore::engine
