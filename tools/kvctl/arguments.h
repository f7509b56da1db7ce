// What a kvctl command line says, after parsing: plain values, no parser types.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace kvstore::kvctl {

enum class CommandKind {
  kStatus,
  kTiers,
  kOpen,
  kNamespaces,
  kPut,
  kGet,
  kMatch,
  kList,
  kEvict,
  kClear,
  kQuota,
  kVerify,
  kDrain,
  kResume,
  kConfig,
  kCompletion,
};

// The flags of `open`. A field that was not given is empty: the daemon fills in its default.
struct SpecFlags {
  std::string model;
  std::string revision;
  std::string adapter;
  std::string dtype;
  std::string layout;
  std::string tenant;
  uint32_t block_tokens = 0;
  uint32_t slices = 0;
  std::string slice_bytes;  // "65536" or "64KiB"
};

struct Arguments {
  CommandKind command{};

  // Global flags.
  std::optional<std::string> target;
  std::optional<std::string> admin;  // where server.admin has moved the Admin calls
  std::string tls_cert, tls_key, tls_ca;
  bool json = false;
  absl::Duration timeout = absl::Seconds(5);  // without progress, not of the whole command

  std::string name;         // namespace: its name, or its fingerprint in hex
  std::string tokens_path;  // "-": standard input
  std::string data_path;
  std::string out_path;
  std::string spec_path;
  SpecFlags spec;
  std::string tier;    // empty: any
  std::string tenant;  // empty: all
  std::string bytes;   // "40GiB", "none"; empty: only show
  uint32_t limit = 100;
  bool repair = false;
  std::string shell;
};

}  // namespace kvstore::kvctl
