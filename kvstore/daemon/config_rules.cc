// Rules over several keys of the configuration.
#include <string>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/daemon/config_keys.h"

namespace kvstore::daemon {
namespace {

// As it can be given back in the configuration.
std::string InMebibytes(uint64_t bytes) { return absl::StrCat(bytes >> 20, "MiB"); }

// What says who may connect must say it once, and completely.
absl::Status CheckAccess(const Config& config) {
  const Config::Auth& auth = config.auth;
  const bool has_tls =
      !auth.tls_cert.empty() || !auth.tls_key.empty() || !auth.tls_client_ca.empty();
  if (has_tls && (auth.tls_cert.empty() || auth.tls_key.empty() || auth.tls_client_ca.empty())) {
    return absl::InvalidArgumentError(
        "TLS needs all of auth.tls_cert, auth.tls_key and auth.tls_client_ca");
  }
  if (has_tls && auth.tenants.empty()) {
    return absl::InvalidArgumentError(
        "auth.tls_cert is set but auth.tenants is not: without it no certificate has a tenant");
  }
  if (!auth.tenants.empty() && !auth.allow_uids.empty()) {
    return absl::InvalidArgumentError(
        "auth.tenants and auth.allow_uids are both set; list the uids in the tenants file");
  }
  if (config.server.insecure && (has_tls || !auth.tenants.empty())) {
    return absl::InvalidArgumentError(
        "server.insecure lets every local process in; it goes with neither auth.tls_cert nor "
        "auth.tenants");
  }
  for (const std::string& address : config.server.listen) {
    if (has_tls || config.server.insecure || !address.starts_with("tcp:")) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "server.listen: ", address,
        " has no TLS; set auth.tls_cert, auth.tls_key, auth.tls_client_ca and auth.tenants, or "
        "server.insecure=true, which serves loopback addresses only"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckConfig(const Config& config, const Machine& machine) {
  RETURN_IF_ERROR(CheckAccess(config));
  if (!config.gpu.device.empty() && config.gpu.bytes == 0) {
    return absl::InvalidArgumentError(
        "tier.gpu.device is set but tier.gpu.bytes is not; e.g. tier.gpu.bytes=1GiB");
  }
  if (config.gpu.device.empty() && config.gpu.bytes != 0) {
    return absl::InvalidArgumentError(
        "tier.gpu.bytes is set but tier.gpu.device is not; valid: host, cuda:N");
  }
  if (!config.nvme.dirs.empty() && config.nvme.bytes == 0) {
    return absl::InvalidArgumentError(
        "tier.nvme.dirs is set but tier.nvme.bytes is not; e.g. tier.nvme.bytes=100GiB");
  }
  if (config.nvme.dirs.empty() && config.nvme.bytes != 0) {
    return absl::InvalidArgumentError(
        "tier.nvme.bytes is set but tier.nvme.dirs is not; e.g. tier.nvme.dirs=/var/lib/kvstore");
  }
  if (config.nvme.encrypt.empty() != config.nvme.key_file.empty()) {
    return absl::InvalidArgumentError(
        "tier.nvme.encrypt and tier.nvme.key_file are set together or not at all");
  }
  if (!config.nvme.encrypt.empty() && config.nvme.dirs.empty()) {
    return absl::InvalidArgumentError("tier.nvme.encrypt is set but tier.nvme.dirs is not");
  }
  if (config.dram.bytes == 0) {
    return absl::InvalidArgumentError(
        "tier.dram.bytes has no default on this machine; e.g. tier.dram.bytes=1GiB");
  }
  // Faulting in more than there is would end in the kernel's choice of what to kill.
  // A CUDA device has memory of its own, and says itself when it is too little.
  const uint64_t wanted = config.dram.bytes + (config.gpu.device == "host" ? config.gpu.bytes : 0);
  if (machine.memory_bytes != 0 && wanted > machine.memory_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tier.dram.bytes and tier.gpu.bytes together are ", InMebibytes(wanted),
                     ", more than the memory of this machine or cgroup; valid: at most ",
                     InMebibytes(machine.memory_bytes)));
  }
  return absl::OkStatus();
}

}  // namespace kvstore::daemon
