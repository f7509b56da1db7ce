// More than the daemon can or should take: connections, half-said requests, lies about lengths,
// readers that do not read. Its memory stays bounded and others are served meanwhile and after.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <deque>

#include "kvstore/base/acquire_packet.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/raw_http2.h"
#include "tests/integration/raw_socket.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;

constexpr char kMatchPath[] = "/kvstore.v1.KvStore/Match";
constexpr uint64_t kGrowthMax = uint64_t{64} << 20;

class Overload : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> sets = {}) {
    ASSERT_NO_FATAL_FAILURE(daemon_.Start({.sets = std::move(sets)}));
    client_ = daemon_.Connect();
    ASSERT_TRUE(client_->WaitConnected(absl::Now() + absl::Seconds(10)).ok());
    const absl::StatusOr<Namespace> ns = client_->Open("small", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    hashes_ = ns_.Hash(Tokens(ns_.spec, 8, 1));
    ASSERT_TRUE(client_->Put(ns_, hashes_, PagesBytes(ns_.spec, hashes_)).ok());
    before_ = daemon_.ResidentBytes();
  }
  UniqueFd Connect() const { return ConnectRaw(daemon_.socket_path(), SOCK_STREAM); }
  static bool Send(const UniqueFd& fd, const std::string& bytes) {
    return SendRaw(fd, bytes.data(), bytes.size());
  }
  // A client that is there already goes on.
  void ExpectServed() {
    std::vector<std::byte> pages(hashes_.size() * ns_.spec.shape.page_bytes());
    const auto got = client_->Get(ns_, hashes_, pages, absl::Now() + absl::Seconds(2));
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->delivered_blocks, hashes_.size());
    EXPECT_EQ(pages, PagesBytes(ns_.spec, hashes_));
  }
  // A new one is let in.
  void ExpectRecoversWithin(absl::Duration time) {
    const absl::Time start = absl::Now();
    const std::unique_ptr<Client> fresh = daemon_.Connect();
    const absl::Status connected = fresh->WaitConnected(start + time);
    EXPECT_TRUE(connected.ok()) << connected << " after " << absl::Now() - start;
    EXPECT_TRUE(fresh->MatchPrefix(ns_, hashes_, absl::Now() + absl::Seconds(2)).ok());
  }
  void ExpectBoundedGrowth() {
    const uint64_t now = daemon_.ResidentBytes();
    std::printf("grew by %.1f MiB\n",
                now > before_ ? static_cast<double>(now - before_) / (1 << 20) : 0);
    EXPECT_LE(now, before_ + kGrowthMax);
  }

  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
  std::vector<BlockHash> hashes_;
  uint64_t before_ = 0;
};

TEST_F(Overload, AThousandIdleConnectionsOfEveryKind) {
  Start({"limits.handshake_time=60s"});
  std::vector<UniqueFd> idle;
  size_t refused = 0;
  for (int i = 0; i < 1000; ++i) {
    // Silent ones, ones that gRPC has taken over, and sessions.
    if (i % 3 == 2) {
      idle.push_back(ConnectRaw(daemon_.socket_path() + kMemorySocketSuffix, SOCK_SEQPACKET));
      const MemoryRequest hello = Hello();
      SendRaw(idle.back(), &hello, sizeof hello);
      continue;
    }
    idle.push_back(Connect());
    if (i % 3 == 1) Send(idle.back(), Http2Opening());
  }
  ExpectServed();
  for (const UniqueFd& fd : idle) refused += IsHungUp(fd, 0);
  EXPECT_GT(refused, 0u) << "limits.connections_per_uid was not met: this showed nothing";
  ExpectBoundedGrowth();
  idle.clear();
  ExpectRecoversWithin(absl::Seconds(3));
}

// Requests that never end: a byte now and then, so that nobody is silent.
TEST_F(Overload, RequestsThatDripHoldOnlyTheirConnections) {
  Start({"limits.handshake_time=500ms"});
  std::vector<UniqueFd> slow;
  const std::string request =
      Http2Opening() + CallHeaders(1, kMatchPath) +
      Frame(Http2Frame::kData, 0, 1, MessagePrefix(1000) + std::string(100, '\x0a'));
  for (int i = 0; i < 200; ++i) {
    slow.push_back(Connect());
    Send(slow.back(), request.substr(0, 20));  // not even the preface
  }
  absl::SleepFor(absl::Milliseconds(300));
  for (size_t i = 0; i < slow.size(); i += 2) Send(slow[i], request.substr(20, 40));
  for (size_t at = 60; at < request.size(); at += 7) {
    for (size_t i = 0; i < slow.size(); i += 2) Send(slow[i], request.substr(at, 7));
    absl::SleepFor(absl::Milliseconds(10));
  }
  ExpectServed();
  ExpectBoundedGrowth();
  // Those that did not finish even the preface are gone.
  size_t dropped = 0;
  for (size_t i = 1; i < slow.size(); i += 2) dropped += IsHungUp(slow[i], 2000);
  EXPECT_EQ(dropped, slow.size() / 2);
  slow.clear();
  ExpectRecoversWithin(absl::Seconds(3));
}

TEST_F(Overload, LiesAboutLengthsAreRefusedWithoutMemory) {
  Start();
  const std::string piece(16000, 'x');
  for (const uint32_t claimed : {UINT32_MAX, uint32_t{1} << 31, uint32_t{64} << 20}) {
    SCOPED_TRACE(claimed);
    std::vector<UniqueFd> liars;
    for (int i = 0; i < 20; ++i) {
      liars.push_back(Connect());
      std::string request = Http2Opening() + CallHeaders(1, kMatchPath) +
                            Frame(Http2Frame::kData, 0, 1, MessagePrefix(claimed) + piece);
      Send(liars.back(), request);
      // As much as flow control lets through, and more.
      fcntl(liars.back().get(), F_SETFL, O_NONBLOCK);
      for (int k = 0; k < 64; ++k) Send(liars.back(), Frame(Http2Frame::kData, 0, 1, piece));
    }
    ExpectServed();
    ExpectBoundedGrowth();
  }
  // A frame that claims 16 MiB, and headers that never end.
  const UniqueFd frame = Connect();
  Send(frame, Http2Opening() + std::string("\xff\xff\xff\x00\x00\x00\x00\x00\x01", 9) + piece);
  EXPECT_TRUE(IsHungUp(frame, 5000));
  const UniqueFd headers = Connect();
  std::string many;
  for (int i = 0; i < 200; ++i) many += Header("x-" + std::to_string(i), std::string(100, 'v'));
  Send(headers, Http2Opening() + Frame(Http2Frame::kHeaders, 0, 1, many.substr(0, 16000)));
  for (int i = 0; i < 50; ++i)
    Send(headers, Frame(Http2Frame::kHeaders, 0, 1, many.substr(0, 16000)));
  EXPECT_TRUE(IsHungUp(headers, 5000));
  ExpectServed();
  ExpectBoundedGrowth();
  ExpectRecoversWithin(absl::Seconds(3));
}

// Groups in groups in groups: a parser that recurses without a bound would run out of stack.
TEST_F(Overload, DeeplyNestedMessagesAreRefused) {
  Start();
  for (const size_t depth : {size_t{150}, size_t{100'000}, size_t{1'500'000}}) {
    std::string nested(depth, '\x7b');  // unknown field 15, start of a group
    nested.append(depth, '\x7c');       // and its end
    const UniqueFd fd = Connect();
    const std::string message = MessagePrefix(static_cast<uint32_t>(nested.size())) + nested;
    Send(fd, Http2Opening() + CallHeaders(1, kMatchPath));
    fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    for (size_t at = 0; at < message.size(); at += 16000) {
      const bool is_last = at + 16000 >= message.size();
      if (!Send(fd,
                Frame(Http2Frame::kData, is_last ? kEndStream : 0, 1, message.substr(at, 16000))))
        break;
    }
    ExpectServed();
  }
  ExpectBoundedGrowth();
  ExpectRecoversWithin(absl::Seconds(3));
}

// 64 streams of 38 MiB each that nobody reads: the calls that limits.call_bytes has room for are
// let in, each holds a piece or two, the others are refused, and others are served.
TEST_F(Overload, ReadersThatNeverReadHoldLittleAndNobodyUp) {
  Start({"limits.call_bytes=48MiB"});
  const std::vector<BlockHash> many = ns_.Hash(Tokens(ns_.spec, 600, 2));
  ASSERT_TRUE(client_->Put(ns_, many, PagesBytes(ns_.spec, many)).ok());
  hashes_ = {many.begin(), many.begin() + 8};
  before_ = daemon_.ResidentBytes();
  v1::GetRequest request;
  client::FillRef(ns_, request.mutable_namespace_());
  request.set_hashes(client::HashBytes(many));
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::vector<std::unique_ptr<v1::KvStore::Stub>> stubs;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GetResponse>>> readers;
  for (int i = 0; i < 64; ++i) {
    if (i % 8 == 0) {
      grpc::ChannelArguments own;
      own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      channels.push_back(
          grpc::CreateCustomChannel(daemon_.target(), grpc::InsecureChannelCredentials(), own));
      stubs.push_back(v1::KvStore::NewStub(channels.back()));
    }
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    contexts.back()->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    readers.push_back(stubs.back()->Get(contexts.back().get(), request));
  }
  ASSERT_TRUE(Eventually(absl::Seconds(5), [&] {
    const v1::StatusResponse status = daemon_.Status();
    // Three quarters of the bytes, at two MiB a call.
    return status.leases() >= 16 && status.counters().at("calls_refused") >= 30;
  }));
  for (int i = 0; i < 20; ++i) ExpectServed();
  ExpectBoundedGrowth();
  for (size_t i = 0; i < readers.size(); ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
  EXPECT_TRUE(Eventually(absl::Seconds(3), [&] { return daemon_.Status().leases() == 0; }));
  ExpectRecoversWithin(absl::Seconds(3));
}

// The short Acquire of the memory socket is an operation in flight, too.
TEST_F(Overload, AnAcquireWithoutGrpcCountsAgainstItsTenantsCalls) {
  Start({"limits.calls_per_tenant=4"});
  const std::vector<BlockHash> many = ns_.Hash(Tokens(ns_.spec, 600, 2));
  ASSERT_TRUE(client_->Put(ns_, many, PagesBytes(ns_.spec, many)).ok());
  const UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  SayHello(fd);
  const auto acquire = [&] {
    const auto request = EncodeAcquireRequest(ns_.fingerprint, false, std::span(many).first(2));
    std::vector<std::byte> answer(kAcquireReplyBytesMax);
    if (!SendRaw(fd, request.data(), request.size())) return MemoryReplyCode::kMalformed;
    const ssize_t got = recv(fd.get(), answer.data(), answer.size(), 0);
    if (got <= 0) return MemoryReplyCode::kMalformed;
    return DecodeAcquireReply(std::span(answer).first(static_cast<size_t>(got)))->code;
  };
  EXPECT_TRUE(Eventually(absl::Seconds(2), [&] { return acquire() == MemoryReplyCode::kOk; }));
  auto stub = v1::KvStore::NewStub(*client::MakeChannel(daemon_.target()));
  v1::GetRequest request;
  client::FillRef(ns_, request.mutable_namespace_());
  request.set_hashes(client::HashBytes(many));
  // One after the other: a call's place is free a moment after its answer, so one may be refused.
  std::deque<grpc::ClientContext> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GetResponse>>> unread;
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] {
    if (acquire() == MemoryReplyCode::kUseCall) return true;
    contexts.emplace_back().set_deadline(std::chrono::system_clock::now() +
                                         std::chrono::seconds(30));
    unread.push_back(stub->Get(&contexts.back(), request));
    return false;
  }));
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (auto& call : unread) call->Finish();
  EXPECT_TRUE(Eventually(absl::Seconds(2), [&] { return acquire() == MemoryReplyCode::kOk; }));
}

}  // namespace
}  // namespace kvstore::testing
