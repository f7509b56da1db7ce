// kvstored: command line, signals and exit codes.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/base/log.h"
#include "kvstore/daemon/config.h"
#include "kvstore/daemon/daemon.h"
#include "kvstore/daemon/machine.h"
#include "kvstore/daemon/sd_notify.h"

namespace kvstore::daemon {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitBadConfig = 2;
// SIGTERM ends the program within 10 s: drain, then a second for calls in progress, then the rest.
constexpr absl::Duration kDrainTime = absl::Seconds(6);
// What has not ended then waits for a device that does not answer.
constexpr absl::Duration kStopTime = absl::Seconds(9);

constexpr char kFooter[] =
    "Examples:\n"
    "  kvstored                                        a Unix socket, DRAM only, no network\n"
    "  kvstored --set tier.dram.bytes=16GiB --set tier.nvme.dirs=/var/lib/kvstore --set "
    "tier.nvme.bytes=200GiB\n"
    "  kvstored --config /etc/kvstore/kvstored.toml --check-config\n"
    "\nSIGTERM drains and exits 0 within 10 s (1: a device did not answer). SIGHUP reads the "
    "configuration, the tenants file,\n"
    "the certificates and the key file again.\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.\n\nKeys:\n";

struct Arguments {
  std::optional<std::string> config_file;
  std::vector<std::string> sets;
  bool is_insecure = false;
  bool check_config = false;
};

void PrintConfig(const LoadedConfig& loaded) {
  size_t key_width = 0, value_width = 0;
  for (const ConfigValue& value : loaded.values) {
    key_width = std::max(key_width, value.key.size());
    value_width = std::max(value_width, value.value.size());
  }
  for (const ConfigValue& value : loaded.values) {
    std::printf("%-*s  %-*s  %s\n", static_cast<int>(key_width), value.key.c_str(),
                static_cast<int>(value_width), value.value.c_str(), value.source.c_str());
  }
}

// Signals that end or reload us are taken one at a time by the main thread. Threads inherit the
// mask: before any is started.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// Ends the program after kStopTime, whatever waits for what. A thread that the kernel itself holds
// in a request to a device keeps the process in the process table until that is answered.
void EndInTime() {
  std::thread([] {
    absl::SleepFor(kStopTime);
    Log(LogLevel::kError,
        "ended without waiting for a device that does not answer; what it has not taken is lost",
        {{"after", absl::FormatDuration(kStopTime)}});
    _exit(kExitFailed);
  }).detach();
}

void ReloadFrom(const Arguments& arguments, const Machine& machine, Daemon* daemon) {
  // Also when the configuration is wrong: taking access away must not wait for that.
  daemon->ReloadAccess();
  absl::StatusOr<LoadedConfig> fresh = LoadConfig(arguments.config_file, arguments.sets, machine);
  if (fresh.ok()) return daemon->Reload(*fresh);
  Log(LogLevel::kError, "configuration not reloaded, the old one stays",
      {{"status", fresh.status()}});
}

int Serve(const Arguments& arguments, const Machine& machine, LoadedConfig loaded) {
  ConfigureLog(loaded.config.log.level, loaded.config.log.format);
  const sigset_t signals = BlockSignals();
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(std::move(loaded));
  if (!daemon.ok()) {
    Log(LogLevel::kError, "cannot start", {{"status", daemon.status()}});
    return absl::IsInvalidArgument(daemon.status()) ? kExitBadConfig : kExitFailed;
  }
  SdNotify("READY=1");
  for (;;) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    if (signal != SIGHUP) {
      Log(LogLevel::kInfo, "draining", {{"signal", signal}});
      break;
    }
    SdNotify("RELOADING=1");
    ReloadFrom(arguments, machine, daemon->get());
    SdNotify("READY=1");
  }
  SdNotify("STOPPING=1");
  EndInTime();
  absl::Status stopped = (*daemon)->Stop(kDrainTime);
  if (!stopped.ok()) Log(LogLevel::kWarning, "drain was cut short", {{"status", stopped}});
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

int Main(int argc, char** argv) {
  HardenProcess();
  TuneAllocator();
  CLI::App app("kvstored: hierarchical KV-cache storage for LLM inference", "kvstored");
  Arguments arguments;
  app.add_option("--config", arguments.config_file, "TOML file to read")->type_name("FILE");
  // One value each: a second word would be taken for another setting.
  app.add_option("--set", arguments.sets,
                 "section.key=value over the file; may be given more than once")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--insecure", arguments.is_insecure,
               "short for --set server.insecure=true: loopback TCP without TLS");
  app.add_flag("--check-config", arguments.check_config,
               "print every effective value and where it comes from, and exit");
  app.set_version_flag("--version", "kvstored " + VersionText());
  app.footer(kFooter + DescribeKeys());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitBadConfig;
  }
  if (arguments.is_insecure) arguments.sets.push_back("server.insecure=true");
  const Machine machine = LookAtMachine();
  absl::StatusOr<LoadedConfig> loaded = LoadConfig(arguments.config_file, arguments.sets, machine);
  if (!loaded.ok()) {
    std::cerr << "kvstored: " << loaded.status().message() << "\n";
    return kExitBadConfig;
  }
  if (arguments.check_config) {
    PrintConfig(*loaded);
    const absl::Status files = CheckFiles(loaded->config);
    if (files.ok()) return 0;
    std::cerr << "kvstored: " << files.message() << "\n";
    return kExitBadConfig;
  }
  return Serve(arguments, machine, *std::move(loaded));
}

}  // namespace
}  // namespace kvstore::daemon

int main(int argc, char** argv) { return kvstore::daemon::Main(argc, argv); }
