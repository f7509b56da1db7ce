#include "tools/kvbench/daemon.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "tools/kvbench/stopwatch.h"

namespace kvstore::bench {
namespace {

constexpr absl::Duration kStartTime = absl::Seconds(30);
constexpr absl::Duration kStopTime = absl::Seconds(30);
constexpr absl::Duration kCallTime = absl::Seconds(30);

template <typename Request, typename Response>
absl::Status Ask(const std::string& target,
                 grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                         Response*),
                 const Request& request, Response* response) {
  ASSIGN_OR_RETURN(const std::string admin, client::AdminTarget(target));
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, client::MakeChannel(admin));
  const auto stub = v1::Admin::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTime));
  return client::FromGrpc((*stub.*method)(&context, request, response));
}

v1::Tier Wire(client::Tier tier) { return static_cast<v1::Tier>(static_cast<int>(tier) + 1); }

}  // namespace

Daemon::Daemon(DaemonOptions options, WorkFolder folder)
    : options_(std::move(options)),
      folder_(std::move(folder)),
      target_("unix:" + (folder_ / "kvstored.sock")) {}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options) {
  ASSIGN_OR_RETURN(WorkFolder folder, WorkFolder::Create(options.work_dir));
  std::unique_ptr<Daemon> daemon(new Daemon(options, std::move(folder)));
  RETURN_IF_ERROR(daemon->Launch());
  RETURN_IF_ERROR(daemon->WaitUntilServing());
  return daemon;
}

absl::Status Daemon::Launch() {
  std::vector<std::string> arguments = {options_.bin_dir + "/kvstored"};
  const auto set = [&arguments](const std::string& key, const std::string& value) {
    arguments.push_back("--set");
    arguments.push_back(absl::StrCat(key, "=", value));
  };
  set("server.listen", target_);
  set("tier.dram.bytes", absl::StrCat(options_.dram_bytes, "B"));
  if (options_.gpu_bytes > 0) {
    set("tier.gpu.device", options_.gpu_device);
    set("tier.gpu.bytes", absl::StrCat(options_.gpu_bytes, "B"));
  }
  if (options_.nvme_bytes > 0) {
    set("tier.nvme.dirs", folder_ / "nvme");
    set("tier.nvme.bytes", absl::StrCat(options_.nvme_bytes, "B"));
  }
  const std::string log = folder_ / "log";
  ASSIGN_OR_RETURN(Program program, Program::Start(arguments, log, log));
  program_.emplace(std::move(program));
  return absl::OkStatus();
}

absl::Status Daemon::WaitUntilServing() {
  const absl::Time end = absl::Now() + kStartTime;
  absl::Status status = absl::UnavailableError("it does not answer");
  while (absl::Now() < end && !program_->HasEnded()) {
    status = IsRecovering().status();
    if (status.ok()) return status;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::UnavailableError(
      absl::StrCat("kvstored: ", std::string(status.message()), "\n", LastLines(folder_ / "log")));
}

double Daemon::CpuSeconds() const { return bench::CpuSeconds(program_->pid()); }

absl::StatusOr<std::unique_ptr<client::Client>> Daemon::Connect() {
  client::ClientOptions options;
  options.target = target_;
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Create(options));
  RETURN_IF_ERROR(client->WaitConnected(absl::Now() + kCallTime));
  return client;
}

absl::StatusOr<TierUse> Daemon::Use(client::Tier tier) {
  v1::StatusResponse response;
  RETURN_IF_ERROR(Ask(target_, &v1::Admin::Stub::Status, v1::StatusRequest(), &response));
  for (const v1::TierStatus& row : response.tiers()) {
    if (row.tier() != Wire(tier)) continue;
    return TierUse{.pages = row.pages(),
                   .in_flight = row.in_flight(),
                   .read_bytes = row.read_bytes(),
                   .write_bytes = row.write_bytes()};
  }
  return absl::NotFoundError(absl::StrCat("the daemon has no ", client::TierName(tier), " tier"));
}

absl::StatusOr<bool> Daemon::IsRecovering() {
  v1::StatusResponse response;
  RETURN_IF_ERROR(Ask(target_, &v1::Admin::Stub::Status, v1::StatusRequest(), &response));
  return response.is_recovering();
}

absl::StatusOr<uint64_t> Daemon::Evict(const std::string& ns, client::Tier tier) {
  v1::EvictRequest request;
  request.set_namespace_(ns);
  request.set_tier(Wire(tier));
  v1::EvictResponse response;
  RETURN_IF_ERROR(Ask(target_, &v1::Admin::Stub::Evict, request, &response));
  return response.skipped_blocks();
}

absl::Status Daemon::EvictAll(client::Tier tier) {
  v1::NamespacesResponse response;
  RETURN_IF_ERROR(Ask(target_, &v1::Admin::Stub::Namespaces, v1::NamespacesRequest(), &response));
  for (const auto& row : response.namespaces()) {
    ASSIGN_OR_RETURN(const uint64_t left, Evict(row.name(), tier));
    if (left > 0) {
      return absl::UnavailableError(
          absl::StrCat(left, " blocks stay in the ", client::TierName(tier), " tier"));
    }
  }
  return absl::OkStatus();
}

absl::Status Daemon::ClearAll() {
  v1::NamespacesResponse response;
  RETURN_IF_ERROR(Ask(target_, &v1::Admin::Stub::Namespaces, v1::NamespacesRequest(), &response));
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, Connect());
  for (const auto& row : response.namespaces()) {
    ASSIGN_OR_RETURN(const client::Namespace ns, client->Find(row.name()));
    RETURN_IF_ERROR(client->Clear(ns, absl::Now() + kCallTime));
  }
  return absl::OkStatus();
}

absl::Status Daemon::Stop() {
  program_->Signal(SIGTERM);
  absl::Status status = program_->Wait(kStopTime);
  if (status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat("kvstored: ", std::string(status.message()), "\n", LastLines(folder_ / "log")));
}

}  // namespace kvstore::bench
