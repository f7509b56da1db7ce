// A namespace that the daemon knows, looked up by the name on the command line.
#pragma once

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kvstore/client/client.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/common.pb.h"
#include "tools/kvctl/daemon_calls.h"

namespace kvstore::kvctl {

// By name, or by fingerprint in hex (32 digits). Errors: NotFound; those of the call.
absl::StatusOr<client::Namespace> FindNamespace(DaemonCalls& daemon, const std::string& name);

// For requests that name a namespace and a prefix in it: Match, Put, Get.
template <typename Message>
void FillRequest(const client::Namespace& ns, std::span<const BlockHash> hashes, Message& message) {
  client::FillRef(ns, message.mutable_namespace_());
  message.set_hashes(client::HashBytes(hashes));
}

std::string FingerprintHex(const std::string& bytes);

}  // namespace kvstore::kvctl
