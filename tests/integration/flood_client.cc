// A tenant that takes what it can get: fairness_test runs it under another uid until it kills it.
//   flood_client TARGET KIND THREADS
// KIND: calls (large matches and acquires without a pause), queued (hundreds of large matches at a
// time, which wait for the core), saves (fills the tiers), unread
// (streams that nobody reads, opened again and again). It floods after an 'f' on its standard
// input; after a 'b', as at first, its threads burn their processor against nothing. Each letter is
// answered once no thread does what it did before.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/client.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Namespace;

constexpr size_t kBlocks = 512;

// What the threads are to do; each of them follows at its next step.
class Mode {
 public:
  // A thread's next step: returns when it may flood, burns its processor before.
  void Step() {
    if (is_flooding_.load()) return;
    ++burning_;
    while (!is_flooding_.load()) {
    }
    --burning_;
  }
  void Flood() {
    is_flooding_.store(true);
    while (burning_.load() > 0) absl::SleepFor(absl::Milliseconds(1));
  }
  void Burn(uint32_t threads) {
    is_flooding_.store(false);
    while (burning_.load() < threads) absl::SleepFor(absl::Milliseconds(1));
  }

 private:
  std::atomic<bool> is_flooding_{false};
  std::atomic<uint32_t> burning_{0};
};

void FloodCalls(Mode& mode, Client& client, const Namespace& ns) {
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, kBlocks, 1));
  for (;;) {
    mode.Step();
    (void)client.MatchPrefix(ns, hashes);
    (void)client.Acquire(ns, hashes, HottestTier::kDram);
  }
}

void FloodQueued(Mode& mode, const std::string& target, const Namespace& ns) {
  constexpr int kAtATime = 50;
  const auto stub = v1::KvStore::NewStub(*client::MakeChannel(target));
  v1::MatchRequest request;
  client::FillRef(ns, request.mutable_namespace_());
  request.set_hashes(client::HashBytes(ns.Hash(Tokens(ns.spec, kBlocks, 1))));
  for (;;) {
    mode.Step();
    std::vector<grpc::ClientContext> contexts(kAtATime);
    std::vector<v1::MatchResponse> responses(kAtATime);
    absl::BlockingCounter left(kAtATime);
    for (int i = 0; i < kAtATime; ++i) {
      stub->async()->Match(&contexts[i], &request, &responses[i],
                           [&left](const grpc::Status&) { left.DecrementCount(); });
    }
    left.Wait();
  }
}

void FloodSaves(Mode& mode, Client& client, const Namespace& ns, uint32_t thread) {
  const std::vector<std::byte> pages(64 * ns.spec.shape.page_bytes());
  for (uint32_t round = 0;; ++round) {
    mode.Step();
    const std::vector<BlockHash> hashes =
        ns.Hash(Tokens(ns.spec, 64, 1'000'000 * (thread + 1) + round));
    (void)client.Put(ns, hashes, pages);
  }
}

void FloodUnread(Mode& mode, const std::string& target, const Namespace& ns) {
  const auto stub = v1::KvStore::NewStub(*client::MakeChannel(target));
  v1::GetRequest request;
  client::FillRef(ns, request.mutable_namespace_());
  request.set_hashes(client::HashBytes(ns.Hash(Tokens(ns.spec, kBlocks, 1))));
  for (;;) {
    mode.Step();
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GetResponse>>> readers;
    for (int i = 0; i < 64; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      readers.push_back(stub->Get(contexts.back().get(), request));
    }
    absl::SleepFor(absl::Milliseconds(500));
    for (const auto& context : contexts) context->TryCancel();
    for (const auto& reader : readers) reader->Finish();
  }
}

int Run(const std::string& target, const std::string& kind, uint32_t threads) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::unique_ptr<Client> first = *Client::Create({.target = target});
  const absl::StatusOr<Namespace> ns = first->Open("flood", SmallSpec());
  if (!ns.ok()) return 2;
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, kBlocks, 1));
  if (!first->Put(*ns, hashes, PagesBytes(ns->spec, hashes)).ok()) return 3;
  Mode mode;
  std::vector<std::thread> all;
  for (uint32_t t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      std::unique_ptr<Client> client = *Client::Create({.target = target});
      if (!client->WaitConnected(absl::Now() + absl::Seconds(10)).ok()) _exit(4);
      if (kind == "calls") FloodCalls(mode, *client, *ns);
      if (kind == "queued") FloodQueued(mode, target, *ns);
      if (kind == "saves") FloodSaves(mode, *client, *ns, t);
      if (kind == "unread") FloodUnread(mode, target, *ns);
    });
  }
  mode.Burn(threads);
  char letter = 'b';
  do {
    if (letter == 'f') mode.Flood();
    if (letter == 'b') mode.Burn(threads);
    if (write(STDOUT_FILENO, &letter, 1) != 1) _exit(5);
  } while (read(STDIN_FILENO, &letter, 1) == 1);
  _exit(0);  // the threads never end
}

}  // namespace
}  // namespace kvstore::testing

int main(int argc, char** argv) {
  if (argc < 4) return 1;
  return kvstore::testing::Run(argv[1], argv[2], static_cast<uint32_t>(std::atoi(argv[3])));
}
