#include "kvstore/service/translate.h"

#include <gtest/gtest.h>

#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {
namespace {

v1::NamespaceSpec WireSpec() {
  v1::NamespaceSpec spec;
  spec.set_model("m");
  spec.set_kv_dtype("bf16");
  spec.set_block_tokens(16);
  spec.set_num_slices(2);
  spec.set_slice_bytes(4096);
  return spec;
}

TEST(Translate, ASpecGetsItsDefaultsAndTheTenantOfTheCaller) {
  absl::StatusOr<NamespaceSpec> spec = ReadSpec(WireSpec(), "uid-7");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->tenant, "uid-7");
  EXPECT_EQ(spec->codec, "raw");
  EXPECT_EQ(spec->layout, "hnd");
  EXPECT_EQ(spec->layout_version, 1u);
  EXPECT_EQ(spec->tensor_size, 1u);
}

TEST(Translate, EveryFieldOfASpecGoesThereAndBack) {
  v1::NamespaceSpec in = WireSpec();
  in.set_weights_revision("r");
  in.set_adapter("a");
  in.set_codec("raw");
  in.set_layout("l");
  in.set_layout_version(3);
  in.set_numerics("n");
  in.set_tensor_rank(1);
  in.set_tensor_size(2);
  in.set_pipeline_rank(2);
  in.set_pipeline_size(3);
  in.set_context_rank(3);
  in.set_context_size(4);
  in.set_tenant("t");
  in.set_salt("s");
  absl::StatusOr<NamespaceSpec> spec = ReadSpec(in, "t");
  ASSERT_TRUE(spec.ok()) << spec.status();
  v1::NamespaceSpec out;
  WriteSpec(*spec, &out);
  EXPECT_EQ(out.SerializeAsString(), in.SerializeAsString());
}

TEST(Translate, AnUpdateWithGapsCarriesPositions) {
  store::AcquireUpdate update;
  update.is_first = true;
  update.lease = LeaseId(9);
  update.matched_blocks = 5;
  for (uint32_t block : {1u, 2u, 4u}) {
    store::AcquireUpdate::Ready ready;
    ready.block = block;
    ready.from = tiers::TierKind::kNvme;
    ready.location.tier = tiers::TierKind::kDram;
    ready.location.page = {.slab = 10 + block, .slot = 20 + block, .generation = 30 + block};
    ready.location.page_checksum = 40 + block;
    update.ready.push_back(ready);
  }
  v1::AcquireResponse out;
  WriteAcquireUpdate(update, &out);
  ASSERT_EQ(out.block_size(), 3);
  EXPECT_EQ(out.block(2), 4u);
  EXPECT_EQ(out.slab(2), 14u);
  EXPECT_EQ(out.slot(2), 24u);
  EXPECT_EQ(out.generation(2), 34u);
  EXPECT_EQ(out.page_checksum(2), 44u);
  EXPECT_EQ(out.tier()[2], v1::TIER_DRAM);
  EXPECT_EQ(out.found_in()[2], v1::TIER_NVME);
}

TEST(Translate, AnUpdateWithoutGapsCarriesItsFirstPositionOnly) {
  store::AcquireUpdate update;
  update.ready.resize(3);
  for (uint32_t i = 0; i < 3; ++i) update.ready[i].block = 7 + i;
  v1::AcquireResponse out;
  WriteAcquireUpdate(update, &out);
  EXPECT_EQ(out.block_size(), 0);
  EXPECT_EQ(out.first_block(), 7u);
}

TEST(Translate, SlicesAreWrittenForPagesInPartOnly) {
  store::AcquireUpdate update;
  update.ready.resize(2);
  update.ready[1].block = 1;
  v1::AcquireResponse whole, part;
  WriteAcquireUpdate(update, &whole);
  EXPECT_EQ(whole.ready_slices_size(), 0) << "as to clients that do not know of slices";
  update.ready[1].leading_slices = 3;
  WriteAcquireUpdate(update, &part);
  ASSERT_EQ(part.ready_slices_size(), 2);
  EXPECT_EQ(part.ready_slices(0), 0u);
  EXPECT_EQ(part.ready_slices(1), 3u);
}

TEST(Translate, TokensGiveTheHashesOfWholeBlocks) {
  store::Store::OpenedNamespace ns;
  ns.spec.block_tokens = 4;
  BlockKeys keys;
  keys.by_tokens = true;
  keys.tokens.assign(11, 1);
  EXPECT_EQ(HashesOf(keys, ns)->size(), 2u);
  keys.tokens.assign(size_t{4} * 65537, 1);
  EXPECT_EQ(HashesOf(keys, ns).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvstore::service
