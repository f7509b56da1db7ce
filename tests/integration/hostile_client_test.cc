// Clients that are silent, malformed, greedy, or dead.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "kvstore/base/acquire_packet.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/raw_socket.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::HasSubstr;

void SetDeadline(grpc::ClientContext* context, int seconds = 5) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
}

class Hostile : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> sets = {}) {
    ASSERT_NO_FATAL_FAILURE(daemon_.Start({.sets = std::move(sets)}));
    channel_ = *client::MakeChannel(daemon_.target());
    stub_ = v1::KvStore::NewStub(channel_);
  }
  Namespace Open(Client& client) {
    absl::StatusOr<Namespace> ns = client.Open("small", SmallSpec());
    EXPECT_TRUE(ns.ok()) << ns.status();
    return *ns;
  }
  // On the memory socket, for another tenant.
  UniqueFd OpenSessionAs(const char* tenant) {
    UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
    MemoryRequest hello = Hello();
    std::strcpy(hello.tenant.data(), tenant);
    SendRaw(fd, &hello, sizeof hello);
    MemoryReply reply;
    EXPECT_TRUE(ReceiveReply(fd, &reply));
    EXPECT_EQ(reply.code, MemoryReplyCode::kOk);
    return fd;
  }
  DaemonProcess daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvStore::Stub> stub_;
};

TEST_F(Hostile, ASilentClientIsDroppedInTime) {
  Start({"limits.handshake_time=300ms"});
  UniqueFd stream = ConnectRaw(daemon_.socket_path(), SOCK_STREAM);
  UniqueFd partial = ConnectRaw(daemon_.socket_path(), SOCK_STREAM);
  SendRaw(partial, "PRI * HT", 8);
  UniqueFd memory = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  EXPECT_TRUE(IsHungUp(stream, 2000));
  EXPECT_TRUE(IsHungUp(partial, 2000));
  EXPECT_TRUE(IsHungUp(memory, 2000));
}

TEST_F(Hostile, OtherProtocolsAreDroppedAtOnce) {
  Start({"limits.handshake_time=60s"});
  UniqueFd http1 = ConnectRaw(daemon_.socket_path(), SOCK_STREAM);
  SendRaw(http1, "GET / HTTP/1.1\r\n\r\n", 18);
  EXPECT_TRUE(IsHungUp(http1, 2000));
}

TEST_F(Hostile, MalformedPacketsEndTheConnectionAndNothingElse) {
  Start();
  const std::string path = daemon_.socket_path() + ".mem";
  std::vector<std::function<void(const UniqueFd&)>> attacks = {
      [](const UniqueFd& fd) { SendRaw(fd, "x", 1); },
      [](const UniqueFd& fd) { SendRaw(fd, std::string(65536, 'x').data(), 65536); },
      [](const UniqueFd& fd) {
        MemoryRequest request = Hello();
        request.reserved = 1;
        SendRaw(fd, &request, sizeof request);
      },
      [](const UniqueFd& fd) {
        MemoryRequest request = Hello();
        request.tenant.fill('a');  // not terminated
        SendRaw(fd, &request, sizeof request);
      },
      [](const UniqueFd& fd) {
        MemoryRequest request = Hello(static_cast<MemoryAccess>(7));
        SendRaw(fd, &request, sizeof request);
      },
      [](const UniqueFd& fd) {  // a slab before a session
        MemoryRequest request{.kind = MemoryRequestKind::kMapSlab, .tier = 1, .slab = 1};
        SendRaw(fd, &request, sizeof request);
      },
      [](const UniqueFd& fd) {
        MemoryRequest request = Hello();
        request.version = 77;
        SendRaw(fd, &request, sizeof request);
      },
      [](const UniqueFd& fd) {  // a prefix before a session
        const std::vector<std::byte> packet =
            EncodeAcquireRequest({}, false, std::vector<BlockHash>(1));
        SendRaw(fd, packet.data(), packet.size());
      },
      [](const UniqueFd& fd) {  // fewer hashes than announced
        SayHello(fd);
        const std::vector<BlockHash> hashes(4);
        const std::vector<std::byte> packet = EncodeAcquireRequest({}, false, hashes);
        SendRaw(fd, packet.data(), packet.size() - 1);
      },
      [](const UniqueFd& fd) {  // more than a packet may have
        SayHello(fd);
        GrowSendBuffer(fd.get());
        const std::vector<BlockHash> hashes(kAcquirePacketBlocksMax + 1);
        const std::vector<std::byte> packet = EncodeAcquireRequest({}, false, hashes);
        SendRaw(fd, packet.data(), packet.size());
      },
      [](const UniqueFd& fd) {  // a release before a session
        const MemoryRelease release{.lease = 1};
        SendRaw(fd, &release, sizeof release);
      },
      [](const UniqueFd& fd) {  // two sessions on one connection
        MemoryRequest request = Hello();
        SendRaw(fd, &request, sizeof request);
        MemoryReply reply;
        EXPECT_TRUE(ReceiveReply(fd, &reply));
        EXPECT_EQ(reply.code, MemoryReplyCode::kOk);
        SendRaw(fd, &request, sizeof request);
      },
  };
  for (size_t i = 0; i < attacks.size(); ++i) {
    SCOPED_TRACE(i);
    UniqueFd fd = ConnectRaw(path, SOCK_SEQPACKET);
    ASSERT_TRUE(fd.is_open());
    attacks[i](fd);
    EXPECT_TRUE(IsHungUp(fd, 2000));
  }
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().sessions() == 0; }));
}

TEST_F(Hostile, APrefixOfAnotherTenantLooksLikeOneThatIsNotThere) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 2, 1));
  ASSERT_TRUE(client->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
  const UniqueFd fd = OpenSessionAs("stranger");
  Fingerprint unknown = ns.fingerprint;
  unknown.bytes[0] ^= 1;
  std::vector<std::vector<std::byte>> answers;
  for (const Fingerprint& fingerprint : {ns.fingerprint, unknown}) {
    const std::vector<std::byte> packet = EncodeAcquireRequest(fingerprint, true, hashes);
    ASSERT_TRUE(SendRaw(fd, packet.data(), packet.size()));
    std::vector<std::byte> answer(kAcquireReplyBytesMax);
    const ssize_t got = recv(fd.get(), answer.data(), answer.size(), 0);
    ASSERT_GT(got, 0);
    answer.resize(static_cast<size_t>(got));
    answers.push_back(answer);
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(DecodeAcquireReply(answers[0])->code, MemoryReplyCode::kUseCall);
  EXPECT_EQ(daemon_.Status().leases(), 0u);
}

// They have no answer that could slow the client down.
TEST_F(Hostile, AFloodOfReleasesIsBoundedAndTheOthersAreServed) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 2, 1));
  ASSERT_TRUE(client->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
  UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  SayHello(fd);
  const uint64_t before = daemon_.ResidentBytes();
  std::atomic<bool> stop{false};
  std::thread flood([&] {
    for (MemoryRelease release{.lease = 1}; !stop; ++release.lease)
      send(fd.get(), &release, sizeof release, MSG_NOSIGNAL | MSG_DONTWAIT);
  });
  for (int i = 0; i < 200; ++i) {
    const auto lease =
        client->Acquire(ns, hashes, client::HottestTier::kDram, absl::Now() + absl::Seconds(2));
    EXPECT_TRUE(lease.ok()) << lease.status();
  }
  stop = true;
  flood.join();
  EXPECT_LT(daemon_.ResidentBytes(), before + (uint64_t{16} << 20));
}

TEST_F(Hostile, UnknownSlabsAndForeignSlabsLookTheSame) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  ASSERT_TRUE(client->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 2, 1));
  ASSERT_TRUE(client->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
  const UniqueFd fd = OpenSessionAs("stranger");
  MemoryReply reply;
  for (uint32_t tier = 0; tier < 5; ++tier) {
    for (uint32_t slab = 0; slab < 20; ++slab) {
      MemoryRequest request{.kind = MemoryRequestKind::kMapSlab, .tier = tier, .slab = slab};
      ASSERT_TRUE(SendRaw(fd, &request, sizeof request));
      ASSERT_TRUE(ReceiveReply(fd, &reply));
      EXPECT_EQ(reply.code, MemoryReplyCode::kNoSuchSlab) << tier << " " << slab;
    }
  }
}

TEST_F(Hostile, AClientThatDoesNotReadRepliesIsDropped) {
  Start();
  UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  MemoryRequest hello = Hello();
  SendRaw(fd, &hello, sizeof hello);
  const MemoryRequest request{.kind = MemoryRequestKind::kMapSlab, .tier = 1, .slab = 4'000'000};
  // Until the daemon's send buffer is full: then it must let go, not wait.
  bool is_dropped = false;
  for (int i = 0; i < 100'000 && !is_dropped; ++i)
    is_dropped = !SendRaw(fd, &request, sizeof request);
  EXPECT_TRUE(is_dropped || IsHungUp(fd, 2000));
  EXPECT_TRUE(daemon_.Status().health() == v1::StatusResponse::HEALTH_SERVING);
}

TEST_F(Hostile, AForgedOrMissingSessionTokenIsRefused) {
  Start();
  const auto acquire = [&](const std::string& token) {
    grpc::ClientContext context;
    SetDeadline(&context);
    if (!token.empty()) context.AddMetadata(client::kSessionMetadata, token);
    v1::AcquireRequest request;
    request.mutable_namespace_()->set_name("small");
    auto reader = stub_->Acquire(&context, request);
    v1::AcquireResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(acquire(""), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(acquire(std::string(16, '\x7f')), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(acquire("short"), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(Hostile, ASessionsTokenDiesWithItsConnection) {
  Start();
  UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  MemoryRequest hello = Hello();
  SendRaw(fd, &hello, sizeof hello);
  MemoryReply reply;
  ASSERT_TRUE(ReceiveReply(fd, &reply));
  const std::string token(reply.session_token.begin(), reply.session_token.end());
  const auto renew = [&] {
    grpc::ClientContext context;
    SetDeadline(&context);
    context.AddMetadata(client::kSessionMetadata, token);
    v1::RenewResponse response;
    return stub_->Renew(&context, v1::RenewRequest(), &response).error_code();
  };
  EXPECT_EQ(renew(), grpc::StatusCode::OK);
  fd.Reset();
  EXPECT_TRUE(
      Eventually(absl::Seconds(1), [&] { return renew() == grpc::StatusCode::UNAUTHENTICATED; }));
}

TEST_F(Hostile, BadFieldsAreRefusedByName) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const auto match = [&](const std::function<void(v1::MatchRequest*)>& edit) {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::MatchRequest request;
    client::FillRef(ns, request.mutable_namespace_());
    edit(&request);
    v1::MatchResponse response;
    return stub_->Match(&context, request, &response);
  };
  const auto expect = [&](const std::string& part,
                          const std::function<void(v1::MatchRequest*)>& edit) {
    const grpc::Status status = match(edit);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << part;
    EXPECT_THAT(status.error_message(), HasSubstr(part));
  };
  expect("multiple of 32", [](auto* r) { r->set_hashes("abc"); });
  expect("at most 65536", [](auto* r) { r->set_hashes(std::string(65537 * 32, 'h')); });
  expect("65537 blocks", [&](auto* r) {
    r->mutable_tokens()->Resize(static_cast<int>(65537 * ns.spec.block_tokens), 1);
  });
  expect("not both", [](auto* r) {
    r->set_hashes(std::string(32, 'h'));
    r->add_tokens(1);
  });
  expect("exactly one", [](auto* r) { r->clear_namespace_(); });
  expect("exactly one", [](auto* r) { r->mutable_namespace_()->set_name("both"); });
  expect("16", [](auto* r) { r->mutable_namespace_()->set_fingerprint("short"); });
}

TEST_F(Hostile, UnorderedAndUnevenColumnsAreRefused) {
  Start();
  UniqueFd fd = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
  MemoryRequest hello = Hello();
  SendRaw(fd, &hello, sizeof hello);
  MemoryReply reply;
  ASSERT_TRUE(ReceiveReply(fd, &reply));
  const auto commit = [&](const std::vector<uint32_t>& blocks, size_t checksums) {
    grpc::ClientContext context;
    SetDeadline(&context);
    context.AddMetadata(client::kSessionMetadata,
                        std::string(reply.session_token.begin(), reply.session_token.end()));
    v1::CommitRequest request;
    request.set_reservation(1);
    for (uint32_t block : blocks) request.add_block(block);
    for (size_t i = 0; i < checksums; ++i) request.add_page_checksum(1);
    v1::CommitResponse response;
    return stub_->Commit(&context, request, &response);
  };
  EXPECT_THAT(commit({1, 0}, 2).error_message(), HasSubstr("must rise"));
  EXPECT_THAT(commit({1, 1}, 2).error_message(), HasSubstr("must rise"));
  EXPECT_THAT(commit({0, 1}, 1).error_message(), HasSubstr("differ in length"));
  EXPECT_THAT(commit({}, 0).error_message(), HasSubstr("valid: 1 to"));
  EXPECT_EQ(commit({0}, 1).error_code(), grpc::StatusCode::NOT_FOUND)
      << "well-formed, but no such reservation";
}

TEST_F(Hostile, PutRefusesDataThatDoesNotFit) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 2, 1));
  const auto put = [&](const std::vector<size_t>& pieces, bool with_header) {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::PutResponse response;
    auto writer = stub_->Put(&context, &response);
    v1::PutRequest message;
    if (with_header) {
      client::FillRef(ns, message.mutable_header()->mutable_namespace_());
      message.mutable_header()->set_hashes(client::HashBytes(hashes));
      writer->Write(message);
    }
    for (size_t bytes : pieces) {
      message.set_data(std::string(bytes, 'd'));
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  };
  const size_t page = ns.spec.shape.page_bytes();
  EXPECT_THAT(put({page}, false).error_message(), HasSubstr("first message must be the header"));
  EXPECT_THAT(put({page + 1}, true).error_message(),
              HasSubstr("data ended 1 bytes into block 1 of 2"));
  EXPECT_THAT(put({(1 << 20) + 1}, true).error_message(), HasSubstr("at most 1048576"));
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().reservations() == 0; }))
      << "held by calls that failed";
  EXPECT_THAT(put({2 * page, 1}, true).error_message(), HasSubstr("goes on after block 1"));
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().sessions() == 1; }))
      << "only the client's own";
}

TEST_F(Hostile, APutThatIsCancelledInMidStreamHoldsNothing) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 8, 1));
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::PutResponse response;
  auto writer = stub_->Put(&context, &response);
  v1::PutRequest message;
  client::FillRef(ns, message.mutable_header()->mutable_namespace_());
  message.mutable_header()->set_hashes(client::HashBytes(hashes));
  ASSERT_TRUE(writer->Write(message));
  message.set_data(std::string(100'000, 'd'));
  ASSERT_TRUE(writer->Write(message));
  ASSERT_TRUE(Eventually(absl::Seconds(2), [&] { return daemon_.Status().reservations() == 1; }));
  context.TryCancel();
  writer->Finish();
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] {
    const v1::StatusResponse status = daemon_.Status();
    return status.reservations() == 0 && status.sessions() == 1;
  }));
}

// Stays in the middle of a call and is asked for more than the bounds allow.
TEST_F(Hostile, AFloodIsRefusedWithBoundedMemory) {
  Start({"limits.calls=32", "limits.calls_per_tenant=16"});
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const uint64_t before = daemon_.ResidentBytes();
  v1::PutRequest header;
  client::FillRef(ns, header.mutable_header()->mutable_namespace_());
  header.mutable_header()->set_hashes(std::string(60000 * 32, 'h'));
  struct Stalled {
    grpc::ClientContext context;
    v1::PutResponse response;
    std::unique_ptr<grpc::ClientWriter<v1::PutRequest>> writer;
  };
  std::vector<std::unique_ptr<Stalled>> calls;
  for (int i = 0; i < 120; ++i) {
    auto call = std::make_unique<Stalled>();
    SetDeadline(&call->context, 30);
    call->writer = stub_->Put(&call->context, &call->response);
    call->writer->Write(header);
    calls.push_back(std::move(call));
  }
  // Those beyond the bound are refused at once; the others wait for their data, and the owner can
  // still look.
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] {
    return daemon_.Status().counters().at("calls_refused") >= 120 - 16;
  }));
  EXPECT_LE(daemon_.Status().counters().at("calls_in_progress"), 17u);
  EXPECT_EQ(calls.back()->writer->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  calls.pop_back();
  // 16 calls with 2 MiB of hashes each, on the wire and as the call has them; all 120 would be
  // several times that.
  EXPECT_LT(daemon_.ResidentBytes(), before + (uint64_t{96} << 20));
  for (auto& call : calls) {
    call->context.TryCancel();
    call->writer->Finish();
  }
  EXPECT_TRUE(Eventually(absl::Seconds(2), [&] { return daemon_.Status().sessions() == 1; }));
  EXPECT_TRUE(client->MatchPrefix(ns, ns.Hash(Tokens(ns.spec, 2, 1))).ok()) << "others go on";
}

TEST_F(Hostile, ReadersThatDoNotReadHoldLittle) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 600, 1));  // 38 MiB
  ASSERT_TRUE(client->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
  const uint64_t before = daemon_.ResidentBytes();
  v1::GetRequest request;
  client::FillRef(ns, request.mutable_namespace_());
  request.set_hashes(client::HashBytes(hashes));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GetResponse>>> readers;
  for (int i = 0; i < 16; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    SetDeadline(contexts.back().get(), 30);
    readers.push_back(stub_->Get(contexts.back().get(), request));
  }
  absl::SleepFor(absl::Milliseconds(500));  // time in which they would be sent everything
  EXPECT_LT(daemon_.ResidentBytes(), before + (uint64_t{96} << 20)) << "16 readers of 38 MiB each";
  for (size_t i = 0; i < readers.size(); ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] { return daemon_.Status().leases() == 0; }));
}

TEST_F(Hostile, ConnectionsOverTheCapAreClosedAndTheOthersStay) {
  Start({"limits.connections_per_uid=8", "limits.handshake_time=60s"});
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 40; ++i) idle.push_back(ConnectRaw(daemon_.socket_path(), SOCK_STREAM));
  EXPECT_TRUE(IsHungUp(idle.back(), 2000));
  EXPECT_FALSE(IsHungUp(idle.front(), 0));
  idle.clear();
  EXPECT_GE(daemon_.Status().counters().at("connections_refused_cap"), 30u);
}

TEST_F(Hostile, FileDescriptorsRunOutAndTheDaemonRecovers) {
  daemon_.Start({.sets = {"tier.dram.bytes=16MiB", "limits.handshake_time=60s"}, .open_files = 64});
  EXPECT_EQ(daemon_.Status().health(), v1::StatusResponse::HEALTH_DEGRADED)
      << "the lowered caps are named";
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 400; ++i) {
    idle.push_back(ConnectRaw(daemon_.socket_path(), SOCK_STREAM));
    if (i % 2 == 0) idle.push_back(ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET));
  }
  EXPECT_LE(daemon_.OpenFiles(), 64u);
  idle.clear();
  const absl::Time released = absl::Now();
  std::unique_ptr<Client> client = daemon_.Connect();
  absl::Status connected = client->WaitConnected(absl::Now() + absl::Seconds(3));
  EXPECT_TRUE(connected.ok()) << connected << " after " << absl::Now() - released;
  const Namespace ns = Open(*client);
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 4, 1));
  EXPECT_TRUE(client->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
}

}  // namespace
}  // namespace kvstore::testing
