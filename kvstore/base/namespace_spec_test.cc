#include "kvstore/base/namespace_spec.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "kvstore/base/page_trailer.h"

namespace kvstore {
namespace {

NamespaceSpec TestSpec() {
  NamespaceSpec s;
  s.model = "smollm2-135m";
  s.weights_revision = "r1";
  s.kv_dtype = "bf16";
  s.numerics = "cpu-v1";
  s.block_tokens = 16;
  s.shape = {.num_slices = 30, .slice_bytes = 12288};
  return s;
}

// One mutation a field of the spec: a new field without its line here fails
// FingerprintCoversEveryField by its count.
const std::vector<std::function<void(NamespaceSpec&)>> kMutations = {
    [](auto& s) { s.model = "other"; },     [](auto& s) { s.weights_revision = "r2"; },
    [](auto& s) { s.adapter = "lora"; },    [](auto& s) { s.kv_dtype = "f32"; },
    [](auto& s) { s.codec = "zip"; },       [](auto& s) { s.layout = "nhd"; },
    [](auto& s) { s.layout_version = 2; },  [](auto& s) { s.numerics = "cpu-v2"; },
    [](auto& s) { s.block_tokens = 32; },   [](auto& s) { s.shape.num_slices = 31; },
    [](auto& s) { s.shape.slice_bytes++; }, [](auto& s) { s.tensor_rank = 1; },
    [](auto& s) { s.tensor_size = 2; },     [](auto& s) { s.pipeline_rank = 1; },
    [](auto& s) { s.pipeline_size = 2; },   [](auto& s) { s.context_rank = 1; },
    [](auto& s) { s.context_size = 2; },    [](auto& s) { s.tenant = "b"; },
    [](auto& s) { s.salt = "pepper"; },
};

TEST(NamespaceSpec, FingerprintCoversEveryField) {
  ASSERT_EQ(kMutations.size(), 19u);
  std::set<Fingerprint> seen = {TestSpec().ComputeFingerprint()};
  for (const auto& mutate : kMutations) {
    NamespaceSpec s = TestSpec();
    mutate(s);
    EXPECT_TRUE(seen.insert(s.ComputeFingerprint()).second);
  }
}

TEST(NamespaceSpec, TextCannotMoveFromOneFieldToTheNext) {
  NamespaceSpec a = TestSpec(), b = TestSpec();
  a.model = "ab";
  a.weights_revision = "c";
  b.model = "a";
  b.weights_revision = "bc";
  EXPECT_NE(a.ComputeFingerprint(), b.ComputeFingerprint());
}

TEST(NamespaceSpec, EncodingRoundTrips) {
  const NamespaceSpec s = TestSpec();
  EXPECT_EQ(*NamespaceSpec::Decode(s.Encode()), s);
}

// Golden: on disk. A change here needs a new magic.
TEST(NamespaceSpec, GoldenFingerprint) {
  EXPECT_EQ(TestSpec().ComputeFingerprint().Hex(), "70fe85906c241ed87f25250687530aeb");
}

TEST(NamespaceSpec, DamagedEncodingsAreDataLoss) {
  const std::string good = TestSpec().Encode();
  for (size_t n = 0; n < good.size(); ++n) {
    EXPECT_EQ(NamespaceSpec::Decode(std::string_view(good).substr(0, n)).status().code(),
              absl::StatusCode::kDataLoss)
        << n;
  }
  EXPECT_FALSE(NamespaceSpec::Decode(good + "x").ok());
}

TEST(NamespaceSpec, ValidateNamesTheField) {
  const std::pair<std::function<void(NamespaceSpec&)>, const char*> cases[] = {
      {[](auto& s) { s.model.clear(); }, "model"},
      {[](auto& s) { s.salt.assign(257, 'x'); }, "salt"},
      {[](auto& s) { s.codec = "zip"; }, "codec"},
      {[](auto& s) { s.block_tokens = 0; }, "block_tokens"},
      {[](auto& s) { s.block_tokens = 65537; }, "block_tokens"},
      {[](auto& s) { s.shape.num_slices = 0; }, "slices"},
      {[](auto& s) { s.shape.slice_bytes = 0; }, "slice_bytes"},
      {[](auto& s) { s.shape.slice_bytes = UINT32_MAX; }, "slice_bytes"},
      {[](auto& s) { s.tensor_rank = 1; }, "tensor"},
      {[](auto& s) { s.pipeline_size = 0; }, "pipeline"},
  };
  for (const auto& [mutate, field] : cases) {
    NamespaceSpec s = TestSpec();
    mutate(s);
    const absl::Status status = s.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(field), absl::string_view::npos) << status;
  }
  EXPECT_TRUE(TestSpec().Validate().ok());
}

TEST(PageShape, SlotHoldsPageAndTrailerInWholeDiskBlocks) {
  const PageShape shape = {.num_slices = 30, .slice_bytes = 12288};
  EXPECT_EQ(shape.page_bytes(), 368640u);
  EXPECT_EQ(shape.trailer_bytes(), 136u + 240u);
  EXPECT_EQ(shape.slot_bytes(), 368640u + 4096u);
  EXPECT_EQ((PageShape{.num_slices = 1, .slice_bytes = 2000}).slot_bytes(), 4096u);
}

}  // namespace
}  // namespace kvstore
