// What a client can do with a daemon, end to end.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Lease;
using client::Namespace;
using client::Reservation;

class RoundTrip : public ::testing::Test {
 protected:
  void SetUp() override {
    daemon_.Start();
    client_ = daemon_.Connect();
    ASSERT_TRUE(client_->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
    absl::StatusOr<Namespace> ns = client_->Open("small", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
  }
  std::vector<BlockHash> Hashes(size_t blocks, uint32_t seed) const {
    return ns_.Hash(Tokens(ns_.spec, blocks, seed));
  }
  void PutAll(Client& client, const std::vector<BlockHash>& hashes) {
    absl::StatusOr<client::PutResult> put = client.Put(ns_, hashes, PagesBytes(ns_.spec, hashes));
    ASSERT_TRUE(put.ok()) << put.status();
    ASSERT_EQ(put->stored_blocks + put->existing_blocks, hashes.size());
  }
  // What Get gives, after the pages were compared.
  client::GetResult GetAll(Client& client, const std::vector<BlockHash>& hashes) {
    std::vector<std::byte> pages(hashes.size() * ns_.spec.shape.page_bytes());
    absl::StatusOr<client::GetResult> got = client.Get(ns_, hashes, pages);
    EXPECT_TRUE(got.ok()) << got.status();
    if (!got.ok()) return {};
    std::vector<std::byte> expected =
        PagesBytes(ns_.spec, std::span(hashes).first(got->delivered_blocks));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), pages.begin())) << "wrong bytes";
    return *got;
  }

  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
};

TEST_F(RoundTrip, WhatIsPutIsMatchedAndGot) {
  const std::vector<BlockHash> hashes = Hashes(20, 1);
  PutAll(*client_, hashes);
  absl::StatusOr<client::Match> match = client_->MatchPrefix(ns_, hashes);
  ASSERT_TRUE(match.ok()) << match.status();
  EXPECT_EQ(match->matched_blocks, 20u);
  EXPECT_EQ(match->matched_tokens, 320u);
  EXPECT_EQ(match->by_tier[1], 20u);
  const client::GetResult got = GetAll(*client_, hashes);
  EXPECT_EQ(got.delivered_blocks, 20u);
  EXPECT_EQ(got.match.by_tier[1], 20u);
}

TEST_F(RoundTrip, AMissIsNotAnError) {
  const client::GetResult got = GetAll(*client_, Hashes(5, 99));
  EXPECT_EQ(got.match.matched_blocks, 0u);
  absl::StatusOr<Lease> lease = client_->Acquire(ns_, Hashes(5, 99), HottestTier::kDram);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->matched_blocks(), 0u);
}

TEST_F(RoundTrip, AMatchIsTheLongestStoredPrefix) {
  std::vector<BlockHash> hashes = Hashes(10, 1);
  PutAll(*client_, {hashes.begin(), hashes.begin() + 6});
  EXPECT_EQ(GetAll(*client_, hashes).delivered_blocks, 6u);
}

TEST_F(RoundTrip, TheSecondPutStoresNothing) {
  const std::vector<BlockHash> hashes = Hashes(8, 1);
  PutAll(*client_, hashes);
  absl::StatusOr<client::PutResult> again = client_->Put(ns_, hashes, PagesBytes(ns_.spec, hashes));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->stored_blocks, 0u);
  EXPECT_EQ(again->existing_blocks, 8u);
}

TEST_F(RoundTrip, ClearedBlocksAreGone) {
  const std::vector<BlockHash> hashes = Hashes(8, 1);
  PutAll(*client_, hashes);
  ASSERT_TRUE(client_->Clear(ns_).ok());
  EXPECT_EQ(client_->MatchPrefix(ns_, hashes)->matched_blocks, 0u);
}

TEST_F(RoundTrip, LeasedPagesCanBeReadSliceBySlice) {
  const std::vector<BlockHash> hashes = Hashes(3, 1);
  PutAll(*client_, hashes);
  absl::StatusOr<Lease> lease = client_->Acquire(ns_, hashes, HottestTier::kDram);
  ASSERT_TRUE(lease.ok()) << lease.status();
  ASSERT_EQ(lease->matched_blocks(), 3u);
  const std::vector<std::byte> page = PageBytes(ns_.spec, hashes[2]);
  std::vector<std::byte> slice(ns_.spec.shape.slice_bytes);
  for (uint32_t i = 0; i < ns_.spec.shape.num_slices; ++i) {
    absl::Status copied = lease->CopySlice(2, i, slice.data(), absl::Now() + absl::Seconds(2));
    ASSERT_TRUE(copied.ok()) << copied;
    EXPECT_TRUE(
        std::equal(slice.begin(), slice.end(), page.begin() + i * ns_.spec.shape.slice_bytes));
  }
  EXPECT_TRUE(lease->VerifyPage(2, absl::Now() + absl::Seconds(2)).ok());
  EXPECT_TRUE(lease->IsCurrent(2));
  EXPECT_EQ(daemon_.Status().leases(), 1u);
  lease->Release();
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().leases() == 0; }));
}

TEST_F(RoundTrip, ReservedBlocksBelongToTheirReservationUntilCommitted) {
  const std::vector<BlockHash> hashes = Hashes(2, 1);
  client::ReserveRequest request{.parent = std::nullopt, .first_block_index = 0, .hashes = hashes};
  absl::StatusOr<Reservation> first = client_->Reserve(ns_, request);
  ASSERT_TRUE(first.ok()) << first.status();
  absl::StatusOr<Reservation> second = client_->Reserve(ns_, request);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->state(0), Reservation::BlockState::kBeingWritten);
  for (size_t i = 0; i < 2; ++i) first->Fill(i, PageBytes(ns_.spec, hashes[i]).data());
  EXPECT_EQ(client_->MatchPrefix(ns_, hashes)->matched_blocks, 0u)
      << "readers see nothing before the commit";
  ASSERT_TRUE(first->CommitAll(absl::Now() + absl::Seconds(2)).ok());
  EXPECT_EQ(GetAll(*client_, hashes).delivered_blocks, 2u);
}

TEST_F(RoundTrip, ADroppedReservationIsAborted) {
  const std::vector<BlockHash> hashes = Hashes(4, 1);
  {
    absl::StatusOr<Reservation> reservation =
        client_->Reserve(ns_, {.parent = std::nullopt, .first_block_index = 0, .hashes = hashes});
    ASSERT_TRUE(reservation.ok());
    EXPECT_EQ(daemon_.Status().reservations(), 1u);
  }
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().reservations() == 0; }));
}

TEST_F(RoundTrip, AnUnfilledBlockCannotBeCommitted) {
  const std::vector<BlockHash> hashes = Hashes(2, 1);
  absl::StatusOr<Reservation> reservation =
      client_->Reserve(ns_, {.parent = std::nullopt, .first_block_index = 0, .hashes = hashes});
  ASSERT_TRUE(reservation.ok());
  reservation->Fill(0, PageBytes(ns_.spec, hashes[0]).data());
  EXPECT_EQ(reservation->CommitAll(absl::Now() + absl::Seconds(2)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RoundTrip, AReadOnlyClientReadsAndCannotReserve) {
  const std::vector<BlockHash> hashes = Hashes(4, 1);
  PutAll(*client_, hashes);
  std::unique_ptr<Client> reader =
      daemon_.Connect({.target = {}, .tenant = {}, .access = MemoryAccess::kReadOnly});
  ASSERT_TRUE(reader->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  EXPECT_EQ(GetAll(*reader, hashes).delivered_blocks, 4u);
  EXPECT_FALSE(
      reader->Reserve(ns_, {.parent = std::nullopt, .first_block_index = 0, .hashes = hashes})
          .ok());
}

TEST_F(RoundTrip, TenantsDoNotSeeEachOther) {
  const std::vector<BlockHash> hashes = Hashes(4, 1);
  PutAll(*client_, hashes);
  std::unique_ptr<Client> other = daemon_.Connect({.target = {}, .tenant = "other"});
  ASSERT_TRUE(other->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  EXPECT_EQ(other->MatchPrefix(ns_, hashes).status().code(), absl::StatusCode::kNotFound)
      << "the namespace is not the other tenant's";
  absl::StatusOr<Namespace> theirs = other->Open("small", SmallSpec());
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  EXPECT_NE(theirs->fingerprint, ns_.fingerprint);
  EXPECT_EQ(other->MatchPrefix(*theirs, theirs->Hash(Tokens(ns_.spec, 4, 1)))->matched_blocks, 0u);
}

TEST_F(RoundTrip, ANameMeansOneSpec) {
  EXPECT_TRUE(client_->Open("small", SmallSpec()).ok());
  EXPECT_EQ(client_->Open("small", SmallSpec(8)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(client_->Find("small")->fingerprint, ns_.fingerprint);
  EXPECT_EQ(client_->Find("large").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RoundTrip, APrefixLargerThanAWindowIsPutInOrder) {
  const std::vector<BlockHash> hashes = Hashes(400, 3);  // 25 MiB of 64 in the tier
  PutAll(*client_, hashes);
  EXPECT_EQ(GetAll(*client_, hashes).delivered_blocks, 400u);
}

// Inline Put and Get, over the loopback listener, where there is no shared memory.
TEST(Inline, PutAndGetByValueOverTcp) {
  DaemonProcess daemon;
  const std::string address = "tcp:127.0.0.1:" + std::to_string(20000 + getpid() % 20000);
  daemon.Start(
      {.sets = {"server.listen=" + daemon.target() + "," + address, "server.insecure=true"}});
  std::unique_ptr<Client> client = daemon.Connect({.target = address});
  ASSERT_TRUE(client->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  EXPECT_FALSE(client->has_shared_memory());
  // Pages below, at and above the size of a piece.
  for (uint32_t slice_bytes : {16384u, 262144u, 1048576u}) {
    SCOPED_TRACE(slice_bytes);
    absl::StatusOr<Namespace> ns = client->Open("", SmallSpec(4, slice_bytes));
    ASSERT_TRUE(ns.ok()) << ns.status();
    const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 5, 1));
    const std::vector<std::byte> pages = PagesBytes(ns->spec, hashes);
    absl::StatusOr<client::PutResult> put = client->Put(*ns, hashes, pages);
    ASSERT_TRUE(put.ok()) << put.status();
    EXPECT_EQ(put->stored_blocks, 5u);
    std::vector<std::byte> read(pages.size());
    absl::StatusOr<client::GetResult> got = client->Get(*ns, hashes, read);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->delivered_blocks, 5u);
    EXPECT_EQ(got->match.by_tier[1], 5u);
    EXPECT_EQ(read, pages);
  }
  EXPECT_EQ(client->Acquire(client::Namespace{}, {}, HottestTier::kDram).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const v1::StatusResponse status = daemon.Status();
  EXPECT_EQ(status.health(), v1::StatusResponse::HEALTH_DEGRADED) << "an open TCP port is named";
}

}  // namespace
}  // namespace kvstore::testing
