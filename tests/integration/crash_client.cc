// A client that stops in a given state and says "ready": crash_test kills it there.
//   crash_client TARGET STATE
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "kvstore/client/channel.h"
#include "kvstore/client/client.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;

[[noreturn]] void SayReadyAndWait() {
  (void)!write(STDOUT_FILENO, "ready", 5);
  for (;;) pause();
}

void Run(const std::string& target, const std::string& state) {
  std::unique_ptr<Client> client = *Client::Create({.target = target});
  if (!client->WaitConnected(absl::Now() + absl::Seconds(10)).ok()) _exit(2);
  const client::Namespace ns = *client->Open("small", SmallSpec());
  const std::vector<BlockHash> stored = ns.Hash(Tokens(ns.spec, 8, 1));  // by the test
  const std::vector<BlockHash> fresh = ns.Hash(Tokens(ns.spec, 8, static_cast<uint32_t>(getpid())));
  if (state == "session") SayReadyAndWait();
  if (state == "leased") {
    auto lease = client->Acquire(ns, stored, HottestTier::kDram);
    if (!lease.ok() || lease->matched_blocks() != 8) _exit(3);
    SayReadyAndWait();
  }
  if (state == "copying") {
    auto lease = client->Acquire(ns, stored, HottestTier::kDram);
    std::vector<std::byte> page(ns.spec.shape.page_bytes());
    (void)!write(STDOUT_FILENO, "ready", 5);
    for (uint32_t i = 0;; i = (i + 1) % 8) {
      if (!lease->CopyPage(i, page.data(), absl::Now() + absl::Seconds(1)).ok()) _exit(4);
    }
  }
  if (state == "reserved" || state == "filled" || state == "committed") {
    auto reservation =
        client->Reserve(ns, {.parent = std::nullopt, .first_block_index = 0, .hashes = fresh});
    if (!reservation.ok()) _exit(5);
    if (state != "reserved") {
      for (size_t i = 0; i < fresh.size(); ++i)
        reservation->Fill(i, PageBytes(ns.spec, fresh[i]).data());
    }
    const std::vector<uint32_t> half = {0, 1, 2, 3};
    if (state == "committed" && !reservation->Commit(half, absl::Now() + absl::Seconds(2)).ok())
      _exit(6);
    SayReadyAndWait();
  }
  if (state == "paused") {
    auto lease = client->Acquire(ns, stored, HottestTier::kDram);
    std::vector<std::byte> page(ns.spec.shape.page_bytes());
    if (!lease.ok() || !lease->CopyPage(0, page.data(), absl::Now() + absl::Seconds(1)).ok())
      _exit(3);
    raise(SIGSTOP);
    // The lease has expired and its slots have been used again.
    const absl::Status copied = lease->CopyPage(1, page.data(), absl::Now() + absl::Seconds(1));
    if (copied.ok()) _exit(page == PageBytes(ns.spec, stored[1]) ? 41 : 40);
    _exit(absl::IsAborted(copied) && !lease->IsCurrent(1) ? 42 : 43);
  }
  auto stub = v1::KvStore::NewStub(*client::MakeChannel(target));
  grpc::ClientContext context;
  if (state == "putting") {
    v1::PutResponse response;
    auto writer = stub->Put(&context, &response);
    v1::PutRequest message;
    client::FillRef(ns, message.mutable_header()->mutable_namespace_());
    message.mutable_header()->set_hashes(client::HashBytes(fresh));
    if (!writer->Write(message)) _exit(7);
    message.set_data(std::string(70'000, 'd'));
    if (!writer->Write(message)) _exit(8);
    SayReadyAndWait();
  }
  if (state == "getting") {
    v1::GetRequest request;
    client::FillRef(ns, request.mutable_namespace_());
    request.set_hashes(client::HashBytes(stored));
    auto reader = stub->Get(&context, request);
    v1::GetResponse message;
    if (!reader->Read(&message)) _exit(9);
    SayReadyAndWait();
  }
  _exit(1);
}

}  // namespace
}  // namespace kvstore::testing

int main(int argc, char** argv) {
  if (argc < 3) return 1;
  kvstore::testing::Run(argv[1], argv[2]);
}
