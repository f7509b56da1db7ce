#include "kvstore/client/wire.h"

#include <gtest/gtest.h>

#include <functional>

#include "kvstore/client/page_sink.h"

namespace kvstore::client {
namespace {

NamespaceSpec GoodSpec() {
  NamespaceSpec spec;
  spec.model = "m";
  spec.kv_dtype = "bf16";
  spec.block_tokens = 16;
  spec.shape = {.num_slices = 2, .slice_bytes = 4096};
  return spec;
}

// What a daemon answers that has opened `spec`, valid or not.
v1::OpenNamespaceResponse AnswerOf(const NamespaceSpec& spec) {
  v1::OpenNamespaceResponse response;
  WriteSpec(spec, response.mutable_spec());
  response.mutable_spec()->set_tenant(spec.tenant);
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  response.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
  return response;
}

TEST(Wire, ANamespaceIsReadAsTheDaemonHasIt) {
  const auto ns = ReadNamespace(AnswerOf(GoodSpec()));
  ASSERT_TRUE(ns.ok()) << ns.status();
  EXPECT_EQ(ns->spec, GoodSpec());
}

TEST(Wire, ANamespaceThatCannotBeComputedWithIsRefused) {
  const std::function<void(NamespaceSpec&)> lies[] = {
      [](NamespaceSpec& spec) { spec.block_tokens = 0; },
      [](NamespaceSpec& spec) { spec.shape.num_slices = 0; },
      [](NamespaceSpec& spec) { spec.shape.num_slices = kNumSlicesMax + 1; },
      [](NamespaceSpec& spec) { spec.shape.slice_bytes = UINT32_MAX; },
  };
  for (const auto& lie : lies) {
    NamespaceSpec spec = GoodSpec();
    lie(spec);
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadNamespace(AnswerOf(spec)).status()));
    v1::OpenNamespaceResponse with_salt = AnswerOf(spec);
    with_salt.set_has_tenant_salt(true);
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadNamespace(with_salt).status()));
  }
}

TEST(Wire, AMatchOfMoreThanWasAskedForIsRefused) {
  v1::MatchResponse response;
  response.set_matched_blocks(3);
  EXPECT_TRUE(ReadMatch(response, 3).ok());
  EXPECT_TRUE(absl::IsUnavailable(ReadMatch(response, 2).status()));
}

v1::AcquireResponse Columns(size_t count, uint32_t first) {
  v1::AcquireResponse message;
  message.set_first_block(first);
  for (size_t i = 0; i < count; ++i) {
    message.mutable_tier()->push_back(2);
    message.mutable_found_in()->push_back(3);
    message.add_slab(1);
    message.add_slot(static_cast<uint32_t>(i));
    message.add_generation(5);
    message.add_page_checksum(6);
  }
  return message;
}

constexpr PageShape kFourSlices{.num_slices = 4, .slice_bytes = 64};

TEST(Wire, ColumnsOutsideOfTheMatchChangeNothing) {
  AcquiredColumns columns;
  columns.resize(4);
  std::vector<uint32_t> slices;
  EXPECT_TRUE(TakeColumns(Columns(2, 2), kFourSlices, &columns, &slices).ok());
  EXPECT_TRUE(slices.empty()) << "whole pages";
  EXPECT_EQ(columns.tier, (std::vector<uint8_t>{0, 0, 2, 2}));
  const AcquiredColumns before = columns;
  v1::AcquireResponse uneven = Columns(2, 0), unknown_tier = Columns(2, 0), far = Columns(2, 0);
  uneven.add_slab(1);
  (*unknown_tier.mutable_tier())[1] = 4;
  far.add_block(0);
  far.add_block(4);
  for (const v1::AcquireResponse& bad :
       {Columns(2, 3), Columns(1, UINT32_MAX), Columns(5, 0), uneven, unknown_tier, far}) {
    EXPECT_TRUE(absl::IsUnavailable(TakeColumns(bad, kFourSlices, &columns, &slices)));
    EXPECT_EQ(columns.tier, before.tier);
    EXPECT_EQ(columns.slot, before.slot);
  }
}

v1::AcquireResponse WithSlices(v1::AcquireResponse message, std::vector<uint32_t> ready) {
  message.mutable_ready_slices()->Assign(ready.begin(), ready.end());
  return message;
}

TEST(Wire, APageComesInPartUntilItIsWholeAndStaysWhole) {
  AcquiredColumns columns;
  columns.resize(3);
  std::vector<uint32_t> slices;
  const auto take = [&](const v1::AcquireResponse& message) {
    return TakeColumns(message, kFourSlices, &columns, &slices);
  };
  EXPECT_TRUE(take(WithSlices(Columns(2, 0), {0, 3})).ok());
  EXPECT_EQ(slices, (std::vector<uint32_t>{0, 3, 0}));
  EXPECT_TRUE(take(WithSlices(Columns(1, 1), {1})).ok()) << "tried anew, elsewhere";
  EXPECT_EQ(slices, (std::vector<uint32_t>{0, 1, 0}));
  for (const v1::AcquireResponse& bad :
       {WithSlices(Columns(1, 0), {2}), WithSlices(Columns(1, 1), {4}),
        WithSlices(Columns(1, 1), {2, 2}), WithSlices({}, {1})}) {
    EXPECT_TRUE(absl::IsUnavailable(take(bad)));
    EXPECT_EQ(slices, (std::vector<uint32_t>{0, 1, 0}));
  }
  EXPECT_TRUE(take(Columns(2, 1)).ok());
  EXPECT_EQ(slices, (std::vector<uint32_t>{0, 0, 0}));
}

TEST(Wire, SlotsEndWithinTheirSlab) {
  const PageShape shape{.num_slices = 1, .slice_bytes = 64};  // a slot of 4096
  EXPECT_EQ(SlotOffset(3, shape, 16384), 12288u);
  EXPECT_EQ(SlotOffset(3, shape, 16383), std::nullopt);
  EXPECT_EQ(SlotOffset(UINT32_MAX, shape, 16384), std::nullopt);
}

TEST(PageSink, TakesNoByteMoreThanWasAnnounced) {
  std::vector<std::byte> pages(2 * 8);
  PageSink sink(pages, 8, 2);
  v1::GetResponse header, data;
  header.mutable_header()->set_matched_blocks(1);
  header.mutable_header()->set_page_bytes(8);
  data.set_data("12345678");
  ASSERT_TRUE(sink.Take(header).ok());
  EXPECT_TRUE(sink.Take(data).ok());
  EXPECT_TRUE(absl::IsUnavailable(sink.Take(data)));
}

}  // namespace
}  // namespace kvstore::client
