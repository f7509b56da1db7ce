// kvbench: how fast the store is, each figure beside the ceiling of this machine from the same run.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "tools/kvbench/command_line.h"
#include "tools/kvbench/suites.h"
#include "tools/kvbench/svg_plot.h"

namespace kvstore::bench {

void ShowProgress(std::string_view what) {
  std::fprintf(stderr, "kvbench: %.*s ...\n", static_cast<int>(what.size()), what.data());
}

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

absl::Status Run(const Settings& settings, Report& report) {
  if (settings.suite == "store") return RunStoreSuite(settings, report);
  if (settings.suite == "index") return RunIndexSuite(settings, report);
  if (settings.suite == "nvme") return RunNvmeSuite(settings, report);
  if (settings.suite == "pages") return RunPagesSuite(settings, report);
  return RunTtftSuite(settings, report);
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "kvbench: %s\n", std::string(status.message()).c_str());
  return code;
}

int Main(int argc, const char* const* argv) {
  const auto parsed = ParseCommandLine(argc, argv);
  if (const auto* help = std::get_if<HelpText>(&parsed)) {
    std::fputs(help->text.c_str(), stdout);
    return 0;
  }
  if (const auto* status = std::get_if<absl::Status>(&parsed)) return Fail(*status, kWrongUsage);
  const Settings& settings = std::get<Settings>(parsed);
  const Machine machine = ThisMachine(argc, argv);
  Report report(settings.suite, machine);
  if (settings.is_quick()) report.set_is_quick();
  if (absl::Status status = Run(settings, report); !status.ok()) return Fail(status, kFailed);
  std::fputs(report.ToTable().c_str(), stdout);
  if (settings.json_path) {
    absl::Status status = WriteFile(*settings.json_path, report.ToJson().dump(2) + "\n");
    if (!status.ok()) return Fail(status, kFailed);
  }
  if (settings.plot_path) {
    absl::Status status = WriteFile(*settings.plot_path, RenderSvg(report, MachineLine(machine)));
    if (!status.ok()) return Fail(status, kFailed);
  }
  return 0;
}

}  // namespace
}  // namespace kvstore::bench

int main(int argc, char** argv) { return kvstore::bench::Main(argc, argv); }
