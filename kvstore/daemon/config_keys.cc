#include "kvstore/daemon/config_keys.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/daemon/config_rows.h"
#include "kvstore/daemon/config_values.h"
#include "kvstore/metrics/http_server.h"

namespace kvstore::daemon {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kTiB = uint64_t{1} << 40;
constexpr uint64_t kDefaultDramBytesMax = 8 * kGiB;

absl::Status ParseListen(const Values& values, const Machine&, Config* config) {
  if (values.empty()) return absl::InvalidArgumentError("empty list");
  if (values.size() > 8) return absl::InvalidArgumentError("more than 8 listeners");
  std::set<std::string> seen;
  for (const std::string& value : values) {
    if (!value.starts_with("unix:") && !value.starts_with("tcp:")) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", value, "' is neither unix:PATH nor tcp:HOST:PORT"));
    }
    if (!seen.insert(value).second)
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is there twice"));
  }
  config->server.listen = values;
  return absl::OkStatus();
}

absl::Status ParseUids(const Values& values, const Machine&, Config* config) {
  if (values.size() > 64) return absl::InvalidArgumentError("more than 64 uids");
  std::vector<uid_t> uids;
  for (const std::string& value : values) {
    ASSIGN_OR_RETURN(uint64_t uid, ParseInteger(value, 0, uint64_t{UINT32_MAX} - 1));
    uids.push_back(static_cast<uid_t>(uid));
  }
  config->auth.allow_uids = std::move(uids);
  return absl::OkStatus();
}

absl::Status ParseDirs(const Values& values, const Machine&, Config* config) {
  if (values.size() > 16) return absl::InvalidArgumentError("more than 16 directories");
  std::set<std::string> seen;
  for (const std::string& value : values) {
    if (!value.starts_with('/'))
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is not an absolute path"));
    if (!seen.insert(value).second)
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is there twice"));
  }
  config->nvme.dirs = values;
  return absl::OkStatus();
}

absl::Status ParseEncrypt(const Values& values, const Machine&, Config* config) {
  if (values.size() > 1024) return absl::InvalidArgumentError("more than 1024 namespaces");
  std::set<std::string> seen;
  for (const std::string& value : values) {
    if (value.empty() || value.size() > kSpecStringBytesMax)
      return absl::InvalidArgumentError("a name is empty or longer than 256 bytes");
    if (!seen.insert(value).second)
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is there twice"));
  }
  config->nvme.encrypt = values;
  return absl::OkStatus();
}

ConfigKey WriteModeKey(std::string_view name, kvstore::policy::WriteMode Config::Policy::*field,
                       std::string_view meaning) {
  return {.name = name,
          .type = "name",
          .default_text = "through",
          .valid = "through, back",
          .meaning = meaning,
          .parse = [field](const Values& v, const Machine&, Config* c) -> absl::Status {
            ASSIGN_OR_RETURN(c->policy.*field, kvstore::policy::ParseWriteMode(v[0]));
            return absl::OkStatus();
          },
          .print =
              [field](const Config& c) {
                return std::string(kvstore::policy::WriteModeName(c.policy.*field));
              }};
}

void AddServerKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(
      {.name = "server.listen",
       .type = "list of addresses",
       .default_text =
           "unix:$XDG_RUNTIME_DIR/kvstore/kvstored.sock (root: unix:/run/kvstore/kvstored.sock)",
       .valid = "unix:PATH, tcp:HOST:PORT with a numeric HOST; 1 to 8 of them; tcp needs "
                "auth.tls_cert or server.insecure",
       .meaning = "where clients connect; the memory socket is beside each unix one, PATH.mem",
       .is_list = true,
       .parse = ParseListen,
       .print = [](const Config& c) { return PrintList(c.server.listen); }});
  keys->push_back({.name = "server.admin",
                   .type = "address",
                   .default_text = "PATH.admin beside each unix listener",
                   .valid = "unix:PATH",
                   .meaning = "where the Admin calls of kvctl are served, to our own uid and root",
                   .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
                     if (!v[0].empty() && (!v[0].starts_with("unix:") || v[0].size() == 5))
                       return absl::InvalidArgumentError("not unix:PATH");
                     c->server.admin = v[0];
                     return absl::OkStatus();
                   },
                   .print = [](const Config& c) { return c.server.admin; }});
  keys->push_back(
      {.name = "server.insecure",
       .type = "name",
       .default_text = "false",
       .valid = "true, false",
       .meaning =
           "true: tcp listeners on loopback addresses serve every local process, without TLS, "
           "as tenant default",
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         if (v[0] != "true" && v[0] != "false") return absl::InvalidArgumentError("no such name");
         c->server.insecure = v[0] == "true";
         return absl::OkStatus();
       },
       .print = [](const Config& c) { return c.server.insecure ? "true" : "false"; }});
  keys->push_back(IntegerKey<&Config::server, &Config::Server::sessions_max>(
      "server.sessions_max", "1024", "1 to 65536", "shared-memory sessions at a time", {1, 65536}));
  keys->push_back(
      {.name = "server.http",
       .type = "address",
       .default_text = "(none)",
       .valid = "127.0.0.1:PORT, [::1]:PORT, localhost:PORT; port 0: a free one; empty: none",
       .meaning = "where /metrics and /healthz are served",
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         if (!v[0].empty()) RETURN_IF_ERROR(metrics::ParseHttpAddress(v[0]).status());
         c->server.http = v[0];
         return absl::OkStatus();
       },
       .print = [](const Config& c) { return c.server.http; }});
}

void AddAuthKeys(std::vector<ConfigKey>* keys) {
  keys->push_back({.name = "auth.allow_uids",
                   .type = "list of uids",
                   .default_text = "(none)",
                   .valid = "0 to 4294967294; at most 64",
                   .meaning = "who may connect beside our own uid and root; uid N is tenant uid-N",
                   .is_list = true,
                   .parse = ParseUids,
                   .print = [](const Config& c) { return absl::StrJoin(c.auth.allow_uids, ","); }});
  keys->push_back(FileKey<&Config::auth, &Config::Auth::tenants>(
      "auth.tenants", "(none)",
      "TOML file of tenants: their uids, certificate names, salt and quota. Nobody else may "
      "connect. SIGHUP reads it again"));
  keys->push_back(FileKey<&Config::auth, &Config::Auth::tls_cert>(
      "auth.tls_cert", "(no TLS)",
      "PEM certificate chain of the tcp listeners. SIGHUP reads it again, and the next two"));
  keys->push_back(FileKey<&Config::auth, &Config::Auth::tls_key>(
      "auth.tls_key", "(no TLS)", "PEM private key of auth.tls_cert; ours, mode 0400 or 0600"));
  keys->push_back(FileKey<&Config::auth, &Config::Auth::tls_client_ca>(
      "auth.tls_client_ca", "(no TLS)",
      "PEM certificates of the authorities whose client certificates are accepted"));
}

// "host", or "cuda:" and up to three digits. Whether there is such a device shows at start-up.
bool IsGpuDevice(const std::string& name) {
  constexpr std::string_view kCuda = "cuda:";
  if (!name.starts_with(kCuda)) return name == "host";
  const std::string_view number = std::string_view(name).substr(kCuda.size());
  return !number.empty() && number.size() <= 3 &&
         std::ranges::all_of(number, [](char c) { return c >= '0' && c <= '9'; });
}

ConfigKey GpuDeviceKey() {
  return {.name = "tier.gpu.device",
          .type = "name",
          .default_text = "(no GPU tier)",
          .valid = "host, cuda:N",
          .meaning = "device whose memory is the GPU tier; host stands in for one",
          .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
            if (!IsGpuDevice(v[0])) return absl::InvalidArgumentError("no such name");
            c->gpu.device = v[0];
            return absl::OkStatus();
          },
          .print = [](const Config& c) { return c.gpu.device; }};
}

void AddTierKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(GpuDeviceKey());
  keys->push_back(BytesKey<&Config::gpu, &Config::Gpu::bytes>(
      "tier.gpu.bytes", "(required with tier.gpu.device)", "1MiB to 16TiB",
      "capacity of the GPU tier", Percent::kRefused, {kMiB, 16 * kTiB}));
  keys->push_back(BytesKey<&Config::dram, &Config::Dram::bytes>(
      "tier.dram.bytes", "25% of memory, at most 8GiB", "1MiB to 16TiB, or a percentage of memory",
      "capacity of the DRAM tier", Percent::kOfMemory, {kMiB, 16 * kTiB}));
  keys->push_back(
      {.name = "tier.dram.hugepages",
       .type = "name",
       .default_text = "auto",
       .valid = "auto, off",
       .meaning = "auto: huge pages where the kernel has them, else normal ones",
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         if (v[0] != "auto" && v[0] != "off") return absl::InvalidArgumentError("no such name");
         c->dram.hugepages = v[0] == "auto" ? HugePages::kAuto : HugePages::kOff;
         return absl::OkStatus();
       },
       .print =
           [](const Config& c) { return c.dram.hugepages == HugePages::kAuto ? "auto" : "off"; }});
  keys->push_back(
      {.name = "tier.dram.backing",
       .type = "name",
       .default_text = "none",
       .valid = "none, kept",
       .meaning =
           "kept: the memory outlives the daemon; systemd (FileDescriptorStoreMax=) or kvkeep "
           "holds it",
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         if (v[0] != "none" && v[0] != "kept") return absl::InvalidArgumentError("no such name");
         c->dram.backing = v[0] == "kept" ? Backing::kKept : Backing::kNone;
         return absl::OkStatus();
       },
       .print =
           [](const Config& c) { return c.dram.backing == Backing::kKept ? "kept" : "none"; }});
  keys->push_back({.name = "tier.nvme.dirs",
                   .type = "list of paths",
                   .default_text = "(no NVMe tier)",
                   .valid = "absolute paths; at most 16",
                   .meaning = "directories of the NVMe tier, one a disk",
                   .is_list = true,
                   .parse = ParseDirs,
                   .print = [](const Config& c) { return PrintList(c.nvme.dirs); }});
  keys->push_back(BytesKey<&Config::nvme, &Config::Nvme::bytes>(
      "tier.nvme.bytes", "(required with tier.nvme.dirs)", "1MiB to 1024TiB",
      "capacity of the NVMe tier, all directories together", Percent::kRefused,
      {kMiB, 1024 * kTiB}));
  keys->push_back(IntegerKey<&Config::nvme, &Config::Nvme::queue_depth>(
      "tier.nvme.queue_depth", "64", "1 to 1024", "operations in flight on the NVMe tier",
      {1, 1024}));
  keys->push_back({.name = "tier.nvme.encrypt",
                   .type = "list of namespaces",
                   .default_text = "(none)",
                   .valid = "names or fingerprints in hex, * for all; at most 1024",
                   .meaning = "whose pages are encrypted on NVMe; needs tier.nvme.key_file",
                   .is_list = true,
                   .parse = ParseEncrypt,
                   .print = [](const Config& c) { return PrintList(c.nvme.encrypt); }});
  keys->push_back({.name = "tier.nvme.key_file",
                   .type = "path",
                   .default_text = "(none)",
                   .valid = "an absolute path; a file of ours, mode 0400",
                   .meaning = "lines of ID and 64 hex digits; the highest ID encrypts",
                   .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
                     if (!v[0].empty() && !v[0].starts_with('/'))
                       return absl::InvalidArgumentError("not an absolute path");
                     c->nvme.key_file = v[0];
                     return absl::OkStatus();
                   },
                   .print = [](const Config& c) { return c.nvme.key_file; }});
}

void AddPolicyKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(WriteModeKey("policy.write.dram", &Config::Policy::write_to_dram,
                               "when DRAM gets its copy of a page that was saved to the GPU tier"));
  keys->push_back(
      WriteModeKey("policy.write.nvme", &Config::Policy::write_to_nvme,
                   "when NVMe gets its copy of a page in DRAM: at once, or when DRAM evicts it"));
  keys->push_back(NameKey<&Config::policy, &Config::Policy::evict>(
      "policy.evict", "lru", "lru", "which page goes first; leaves before parents", {"lru"}));
}

void AddTimeKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(DurationKey<&Config::limits, &Config::Limits::lease_time>(
      "limits.lease_time", "30s", "1s to 1h",
      "a lease or reservation that is not renewed ends after this",
      {absl::Seconds(1), absl::Hours(1)}));
  keys->push_back(DurationKey<&Config::limits, &Config::Limits::move_deadline>(
      "limits.move_deadline", "2s", "10ms to 10m", "for one move of a page between tiers",
      {absl::Milliseconds(10), absl::Minutes(10)}));
  keys->push_back(DurationKey<&Config::limits, &Config::Limits::call_deadline>(
      "limits.call_deadline", "2s", "10ms to 10m", "of a call that carries no deadline",
      {absl::Milliseconds(10), absl::Minutes(10)}));
  keys->push_back(DurationKey<&Config::limits, &Config::Limits::bulk_deadline>(
      "limits.bulk_deadline", "1m", "1s to 10m",
      "as call_deadline, for Put, Get, Acquire and Verify", {absl::Seconds(1), absl::Minutes(10)}));
  keys->push_back(DurationKey<&Config::limits, &Config::Limits::handshake_time>(
      "limits.handshake_time", "5s", "100ms to 1m",
      "a client that connects and says nothing is dropped after this",
      {absl::Milliseconds(100), absl::Minutes(1)}));
}

void AddBoundKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::core_queue>(
      "limits.core_queue", "4096", "16 to 1000000", "calls that wait for the core thread",
      {16, 1000000}));
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::calls>(
      "limits.calls", "1024", "1 to 65536", "calls being served at a time", {1, 65536}));
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::calls_per_tenant>(
      "limits.calls_per_tenant", "512", "1 to 65536", "as limits.calls, of one tenant",
      {1, 65536}));
  keys->push_back(BytesKey<&Config::limits, &Config::Limits::call_bytes>(
      "limits.call_bytes", "256MiB", "16MiB to 1TiB",
      "memory that calls being served hold, all together", Percent::kRefused, {16 * kMiB, kTiB}));
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::connections>(
      "limits.connections", "512", "1 to 65536", "gRPC connections at a time", {1, 65536}));
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::connections_per_uid>(
      "limits.connections_per_uid", "256", "1 to 65536", "as limits.connections, of one uid",
      {1, 65536}));
  keys->push_back(IntegerKey<&Config::limits, &Config::Limits::namespaces>(
      "limits.namespaces", "1024", "1 to 1000000", "namespaces at a time", {1, 1000000}));
}

void AddLogKeys(std::vector<ConfigKey>* keys) {
  keys->push_back(
      {.name = "log.level",
       .type = "name",
       .default_text = "info",
       .valid = "debug, info, warning, error",
       .meaning = "least severe events that are logged",
       .is_live = true,
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         ASSIGN_OR_RETURN(c->log.level, ParseLogLevel(v[0]));
         return absl::OkStatus();
       },
       .print = [](const Config& c) { return std::string(LogLevelName(c.log.level)); }});
  keys->push_back(
      {.name = "log.format",
       .type = "name",
       .default_text = "text",
       .valid = "text, json",
       .meaning = "how a line looks",
       .parse = [](const Values& v, const Machine&, Config* c) -> absl::Status {
         ASSIGN_OR_RETURN(c->log.format, ParseLogFormat(v[0]));
         return absl::OkStatus();
       },
       .print = [](const Config& c) { return std::string(LogFormatName(c.log.format)); }});
}

}  // namespace

std::span<const ConfigKey> ConfigKeys() {
  static const std::vector<ConfigKey>* const keys = [] {
    auto* made = new std::vector<ConfigKey>;
    AddServerKeys(made);
    AddAuthKeys(made);
    AddTierKeys(made);
    AddPolicyKeys(made);
    AddTimeKeys(made);
    AddBoundKeys(made);
    AddLogKeys(made);
    return made;
  }();
  return *keys;
}

const ConfigKey* FindConfigKey(std::string_view name) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

void ApplyMachineDefaults(const Machine& machine, Config* config) {
  config->dram.bytes = std::min(machine.memory_bytes / 4 / kMiB * kMiB, kDefaultDramBytesMax);
  config->server.listen = {absl::StrCat("unix:", machine.default_socket_path)};
}

}  // namespace kvstore::daemon
