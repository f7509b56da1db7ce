// What another allowed uid may do: run by hostile_client_test under that uid. The exit code says
// which expectation failed.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "kvstore/client/channel.h"
#include "kvstore/client/client.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

int Run(const std::string& target) {
  using client::Client;
  std::unique_ptr<Client> mine = *Client::Create({.target = target});
  if (absl::Status s = mine->WaitConnected(absl::Now() + absl::Seconds(5)); !s.ok()) {
    std::fprintf(stderr, "%s\n", s.ToString().c_str());
    return 10;
  }
  absl::StatusOr<client::Namespace> ns = mine->Open("shared-name", SmallSpec());
  if (!ns.ok()) return 11;
  if (ns->spec.tenant != "uid-" + std::to_string(getuid())) return 12;
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 2, 1));
  if (!mine->Put(*ns, hashes, PagesBytes(ns->spec, hashes)).ok()) return 13;
  // The owner's namespace, by fingerprint and by tenant.
  client::Namespace theirs = *ns;
  theirs.spec.tenant = "default";
  theirs.fingerprint = theirs.spec.ComputeFingerprint();
  if (mine->MatchPrefix(theirs, hashes).status().code() != absl::StatusCode::kNotFound) return 14;
  std::unique_ptr<Client> as_default = *Client::Create({.target = target, .tenant = "default"});
  absl::Status refused = as_default->WaitConnected(absl::Now() + absl::Milliseconds(500));
  if (refused.ok()) return 15;
  if (as_default->Open("x", SmallSpec()).status().code() != absl::StatusCode::kPermissionDenied)
    return 16;
  auto admin = v1::Admin::NewStub(*client::MakeChannel(target));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::StatusResponse response;
  if (admin->Status(&context, v1::StatusRequest(), &response).error_code() !=
      grpc::StatusCode::UNIMPLEMENTED)
    return 17;
  return 0;
}

}  // namespace
}  // namespace kvstore::testing

int main(int argc, char** argv) { return argc < 2 ? 1 : kvstore::testing::Run(argv[1]); }
