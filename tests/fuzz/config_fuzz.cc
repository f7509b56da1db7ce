// The configuration: a TOML file and --set values, and the units that people write.
//
//   input: TOML text, zero byte, then --set values with a zero byte behind each
//
// Promises: the effective values, given back by --set, are the same configuration; an error is
// InvalidArgument, with a text of bounded length.
#include "absl/strings/str_cat.h"
#include "kvstore/base/units.h"
#include "kvstore/daemon/config.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore {
namespace {

const daemon::Machine& TestMachine() {
  static const auto* const machine = new daemon::Machine{
      .memory_bytes = uint64_t{64} << 30, .default_socket_path = "/run/kvstore/kvstored.sock"};
  return *machine;
}

// What `kvctl config` shows can be given back.
void CheckGivenBack(const daemon::LoadedConfig& loaded) {
  std::vector<std::string> sets;
  for (const daemon::ConfigValue& value : loaded.values) {
    REQUIRE(value.source == "default" || value.source == "--set" || value.source == "file fuzz");
    // A list that is empty by default cannot be told from one that was not given.
    if (value.source != "default") sets.push_back(absl::StrCat(value.key, "=", value.value));
  }
  const auto again = daemon::LoadConfigText("", "fuzz", sets, TestMachine());
  if (!again.ok()) {
    std::fprintf(stderr, "%s\n", std::string(again.status().message()).c_str());
  }
  REQUIRE(again.ok() && again->values.size() == loaded.values.size());
  const daemon::ConfigChange change = daemon::CompareConfigs(loaded, *again);
  for (const auto* keys : {&change.live, &change.needs_restart}) {
    for (const std::string& key : *keys) std::fprintf(stderr, "differs: %s\n", key.c_str());
  }
  REQUIRE(change.live.empty() && change.needs_restart.empty());
}

void CheckUnits(std::string_view text) {
  if (const auto bytes = ParseBytes(text); bytes.ok()) {
    REQUIRE(*bytes < uint64_t{1} << 63);
    REQUIRE(!FormatBytes(*bytes).empty());
  }
  if (const auto part = ParseBytes(text, 1000); part.ok() && text.ends_with('%'))
    REQUIRE(*part <= 1000);
  if (const auto time = ParseDuration(text); time.ok())
    REQUIRE(*time >= absl::ZeroDuration() && *time < absl::Seconds(1.1e9));
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  const std::string toml = fuzz::Copy(input.TakeText());
  std::vector<std::string> sets;
  while (!input.is_empty()) {
    sets.push_back(fuzz::Copy(input.TakeText()));
    CheckUnits(sets.back());
  }
  const auto loaded = daemon::LoadConfigText(toml, "fuzz", sets, TestMachine());
  if (loaded.ok()) {
    CheckGivenBack(*loaded);
  } else {
    REQUIRE(absl::IsInvalidArgument(loaded.status()) && !loaded.status().message().empty());
  }
  return 0;
}
