// The calls that kvctl makes, one function each: the only file of kvctl that knows gRPC. Every call
// ends: unary ones after the timeout, streams when nothing arrives (or leaves) for the timeout.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.pb.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::kvctl {

class DaemonCalls {
 public:
  // `target`: of the socket that serves what will be called. Does not connect.
  // Errors: as client::MakeChannel().
  static absl::StatusOr<std::unique_ptr<DaemonCalls>> Create(
      const std::string& target, const std::optional<client::TlsFiles>& tls,
      absl::Duration timeout);
  virtual ~DaemonCalls() = default;

  virtual absl::StatusOr<v1::StatusResponse> Status() = 0;
  virtual absl::StatusOr<v1::ConfigResponse> Config() = 0;
  virtual absl::StatusOr<v1::NamespacesResponse> Namespaces() = 0;
  virtual absl::StatusOr<v1::ListResponse> List(const v1::ListRequest& request) = 0;
  virtual absl::StatusOr<v1::TenantsResponse> Tenants(const v1::TenantsRequest& request) = 0;
  virtual absl::StatusOr<v1::SetQuotaResponse> SetQuota(const v1::SetQuotaRequest& request) = 0;
  // Runs `on_progress` for each message; returns the last one.
  virtual absl::StatusOr<v1::VerifyResponse> Verify(
      const v1::VerifyRequest& request,
      const std::function<void(const v1::VerifyResponse&)>& on_progress) = 0;
  // As Verify().
  virtual absl::StatusOr<v1::DrainResponse> Drain(
      const std::function<void(const v1::DrainResponse&)>& on_progress) = 0;
  virtual absl::StatusOr<v1::ResumeResponse> Resume() = 0;
  virtual absl::StatusOr<v1::OpenNamespaceResponse> OpenNamespace(
      const v1::OpenNamespaceRequest& request) = 0;
  virtual absl::StatusOr<v1::OpenNamespaceResponse> FindNamespace(
      const v1::FindNamespaceRequest& request) = 0;
  virtual absl::StatusOr<v1::EvictResponse> Evict(const v1::EvictRequest& request) = 0;
  virtual absl::StatusOr<v1::MatchResponse> Match(const v1::MatchRequest& request) = 0;
  virtual absl::StatusOr<v1::ClearResponse> Clear(const v1::ClearRequest& request) = 0;

  // Sends `total_bytes` of page data in pieces; `fill` provides each. An error of `fill` cancels
  // the call and is returned.
  virtual absl::StatusOr<v1::PutResponse> Put(
      const v1::PutRequest::Header& header, uint64_t total_bytes,
      const std::function<absl::Status(std::span<std::byte>)>& fill) = 0;
  // Passes each message on, in order. An error of `on_message` cancels the call and is returned.
  virtual absl::Status Get(
      const v1::GetRequest& request,
      const std::function<absl::Status(const v1::GetResponse&)>& on_message) = 0;
};

}  // namespace kvstore::kvctl
