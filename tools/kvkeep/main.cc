// kvkeep: runs kvstored, holds the memory of its DRAM tier while it is restarted.
#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "tools/kvkeep/supervisor.h"

namespace kvstore::keep {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr char kFooter[] =
    "Example:\n"
    "  kvkeep -- kvstored --set tier.dram.bytes=64GiB --set tier.dram.backing=kept\n"
    "\nFor where there is no systemd, which does the same by itself (FileDescriptorStoreMax= in "
    "the\n"
    "unit). The program is started again when it is killed or fails, and is given what it had us\n"
    "keep. SIGTERM and SIGINT end both; SIGHUP is passed on; SIGUSR1 restarts the program, also "
    "one\n"
    "of a newer version.\n"
    "Exit codes: the program's own; 128 + N: signal N ended it; 127: there is no such program; 2: "
    "wrong usage.\n";

int Main(int argc, char** argv) {
  CLI::App app("kvkeep: keeps memory of a program over its restarts", "kvkeep");
  Supervisor::Options options;
  app.add_option("--descriptors", options.descriptors_max,
                 "how many descriptors are kept at most: two for a slab (tier.dram.bytes / 256MiB) "
                 "and four more")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("program", options.command, "program to run, and its arguments, after --")
      ->required()
      ->type_name("-- PROGRAM [ARGUMENT]...");
  app.set_version_flag("--version", "kvkeep " KVSTORE_VERSION);
  app.footer(kFooter);
  app.positionals_at_end();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  absl::StatusOr<Supervisor> supervisor = Supervisor::Create(std::move(options));
  if (!supervisor.ok()) {
    std::fprintf(stderr, "kvkeep: %s\n", supervisor.status().ToString().c_str());
    return kExitFailed;
  }
  return supervisor->Run();
}

}  // namespace
}  // namespace kvstore::keep

int main(int argc, char** argv) { return kvstore::keep::Main(argc, argv); }
