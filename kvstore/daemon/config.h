// The configuration of kvstored: one TOML file, `--set section.key=value` over it, and a table of
// keys that says what is valid.
//
// A key that is not in the table, a value that does not parse or is out of range stops the program;
// nothing is adjusted. The table is the one source for parsing, for error messages, for `--help`,
// `--check-config` and `kvctl config`.
//
// Immutable once loaded; SIGHUP loads a second one and compares.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/log.h"
#include "kvstore/policy/policies.h"

namespace kvstore::daemon {

enum class HugePages { kAuto, kOff };
enum class Backing { kNone, kKept };  // of the DRAM tier's memory

struct Config {
  struct Server {
    std::vector<std::string> listen;
    std::string admin;      // unix:PATH; empty: beside each unix listener
    bool insecure = false;  // loopback TCP without TLS
    uint64_t sessions_max = 1024;
    std::string http;  // empty: no metrics page
  } server;
  struct Auth {
    std::vector<uid_t> allow_uids;                 // beside our own uid and root
    std::string tenants;                           // file; empty: none
    std::string tls_cert, tls_key, tls_client_ca;  // files; empty: no TLS
  } auth;
  struct Gpu {
    std::string device;  // empty: no GPU tier
    uint64_t bytes = 0;
  } gpu;
  struct Dram {
    uint64_t bytes = 0;
    HugePages hugepages = HugePages::kAuto;
    Backing backing = Backing::kNone;
  } dram;
  struct Nvme {
    std::vector<std::string> dirs;  // empty: no NVMe tier
    uint64_t bytes = 0;
    uint64_t queue_depth = 64;
    std::vector<std::string> encrypt;  // namespaces; empty: nothing is encrypted
    std::string key_file;
  } nvme;
  struct Policy {
    kvstore::policy::WriteMode write_to_dram = kvstore::policy::WriteMode::kThrough;
    kvstore::policy::WriteMode write_to_nvme = kvstore::policy::WriteMode::kThrough;
    std::string evict = "lru";
  } policy;
  struct Limits {
    absl::Duration lease_time = absl::Seconds(30);
    absl::Duration move_deadline = absl::Seconds(2);
    absl::Duration call_deadline = absl::Seconds(2);
    absl::Duration bulk_deadline = absl::Seconds(60);
    absl::Duration handshake_time = absl::Seconds(5);
    uint64_t core_queue = 4096;
    uint64_t calls = 1024;
    uint64_t calls_per_tenant = 512;
    uint64_t call_bytes = uint64_t{256} << 20;
    uint64_t connections = 512;
    uint64_t connections_per_uid = 256;
    uint64_t namespaces = 1024;
  } limits;
  struct LogConfig {
    LogLevel level = LogLevel::kInfo;
    LogFormat format = LogFormat::kText;
  } log;
};

// One effective value and where it came from: "default", "file PATH" or "--set".
struct ConfigValue {
  std::string key;
  std::string value;
  std::string source;
};

// What defaults and percentages refer to. Filled by main(): the only place that looks at the
// environment and the machine.
struct Machine {
  uint64_t memory_bytes = 0;
  std::string default_socket_path;
};

struct LoadedConfig {
  Config config;
  std::vector<ConfigValue> values;  // every key, in the table's order
};

// `file`: path of a TOML file, or nullopt. `sets`: "section.key=value", later ones win.
// Errors: InvalidArgument naming the key, its value and what is valid; NotFound / PermissionDenied,
// the file.
absl::StatusOr<LoadedConfig> LoadConfig(const std::optional<std::string>& file,
                                        const std::vector<std::string>& sets,
                                        const Machine& machine);
// As above with the file's content given. For tests and fuzzing.
absl::StatusOr<LoadedConfig> LoadConfigText(std::string_view toml, std::string_view file_name,
                                            const std::vector<std::string>& sets,
                                            const Machine& machine);

// Keys whose value differs; split into those that a running daemon takes over and those that need a
// restart.
struct ConfigChange {
  std::vector<std::string> live;
  std::vector<std::string> needs_restart;
};
ConfigChange CompareConfigs(const LoadedConfig& before, const LoadedConfig& after);

// The table of keys for people: name, type, default, range, meaning.
std::string DescribeKeys();

}  // namespace kvstore::daemon
