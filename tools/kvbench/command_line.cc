#include "tools/kvbench/command_line.h"

#include <CLI/CLI.hpp>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"

namespace kvstore::bench {
namespace {

constexpr char kFooter[] =
    "Every figure is printed with the ceiling of this machine, measured in the same run.\n"
    "Example:\n"
    "  kvbench store --json store.json --plot store.svg --versus redis=unix:/run/redis.sock";
constexpr uint64_t kSetBytesMin = uint64_t{16} << 20;

std::string CheckCudaNumber(const std::string& device) {
  uint32_t number = 0;
  const bool is_good =
      device.starts_with("cuda:") && absl::SimpleAtoi(device.substr(5), &number) && number < 1000;
  return is_good ? std::string() : device + " is not cpu, cuda or cuda:N";
}

struct Parser {
  Settings settings;
  std::string set_size, tier_size, ttft_device;
  bool is_quick = false;
  CLI::App app{"Measure the store against the ceilings of this machine.", "kvbench"};

  Parser() {
    app.require_subcommand(0, 1);  // Finish() says which there are
    app.footer(kFooter);
    app.add_option("--json", settings.json_path, "write the figures there")->type_name("FILE");
    app.add_option("--plot", settings.plot_path, "draw them there")->type_name("FILE.svg");
    app.add_flag("--quick", is_quick, "small sets: shows that it runs, measures little");
    app.add_option("--repeats", settings.repeats, "of every measurement; default 5")
        ->check(CLI::Range(1, 1000));
    app.add_option("--bin", settings.bin_dir, "folder of kvstored and kvengine; default: our own")
        ->type_name("DIR");
    app.add_option("--work", settings.work_dir, "folder on a disk; default /var/tmp")
        ->type_name("DIR");
    AddStore();
    AddIndex();
    AddNvme();
    AddPages();
    AddTtft();
  }

  CLI::App* Add(const std::string& name, const std::string& what) {
    CLI::App* suite = app.add_subcommand(name, what);
    suite->fallthrough();
    suite->callback([this, name] { settings.suite = name; });
    return suite;
  }
  void AddSetSize(CLI::App* suite, const std::string& of) {
    suite->add_option("--set-size", set_size, of + "; default 2GiB")->type_name("SIZE");
  }
  void AddStore() {
    CLI::App* suite =
        Add("store", "lookups and pages between a client and a daemon, over shared memory");
    AddSetSize(suite, "bytes of pages that are put and got");
    suite->add_option("--versus", settings.versus, "a peer on the same work: redis=unix:PATH")
        ->type_name("PEER");
    suite->footer("Example:\n  kvbench store --versus redis=unix:/run/redis.sock");
  }
  void AddIndex() {
    CLI::App* suite = Add("index", "the core alone: time and memory for each block");
    suite
        ->add_option("--blocks", settings.index_blocks,
                     "resident while it is measured; default 1000000")
        ->check(CLI::Range(uint64_t{10000}, uint64_t{100'000'000}));
    suite->footer("Example:\n  kvbench index --blocks 1000000 --json index.json");
  }
  void AddNvme() {
    CLI::App* suite = Add("nvme", "the NVMe tier against raw io_uring on its own file; a restart");
    AddSetSize(suite, "bytes of pages that are written and read");
    suite
        ->add_option("--restart-blocks", settings.restart_blocks,
                     "on disk when the daemon is restarted; default 1000000")
        ->check(CLI::Range(uint64_t{512}, uint64_t{100'000'000}));
    suite->footer("Example:\n  kvbench nvme --work /mnt/nvme --set-size 8GiB");
  }
  void AddPages() {
    CLI::App* suite = Add("pages", "pages between host and GPU memory against a pinned copy");
    AddSetSize(suite, "bytes that are moved in each direction");
    suite->add_option("--device", settings.device, "number of the CUDA device; default 0")
        ->check(CLI::Range(0, 999));
    suite->footer("Example:\n  kvbench pages --set-size 4GiB --json pages.json");
  }
  void AddTtft() {
    CLI::App* suite = Add("ttft", "the engine's time to first token, cold and from each tier");
    suite->add_option("--model", settings.model_dir, "Hugging Face folder")
        ->required()
        ->type_name("DIR");
    suite
        ->add_option("--prompt-tokens", settings.prompt_tokens,
                     "lengths of prompts; default 1024,4096")
        ->delimiter(',')
        ->check(CLI::Range(32, 1 << 20));
    suite
        ->add_option("--device", ttft_device,
                     "where the engine computes: cpu, or cuda (cuda:N: another than the first)")
        ->check(CLI::IsMember({"cpu", "cuda"}) | CLI::Validator(CheckCudaNumber, "cuda:N"))
        ->type_name("cpu|cuda[:N]");
    suite
        ->add_option("--suffix-tokens", settings.suffix_tokens,
                     "new tokens behind the reused ones; default 0, on cuda 64")
        ->check(CLI::Range(0, 1 << 16));
    suite->add_option("--tier-size", tier_size, "of GPU and DRAM tier; default 2GiB, on cuda 12GiB")
        ->type_name("SIZE");
    suite
        ->add_option("--block-tokens", settings.block_tokens,
                     "of the engine; default 16, on cuda 256")
        ->check(CLI::Range(1, 65536));
    suite->add_option("--threads", settings.threads, "of the engine; default: all cores")
        ->check(CLI::Range(0, 256));
    suite->footer(
        "Example:\n"
        "  kvbench ttft --model build/models/smollm2 --prompt-tokens 4096\n"
        "  kvbench ttft --model llama-8b --device cuda --prompt-tokens 8192,16384,32768,65536");
  }
};

template <typename T>
void Default(T& value, T full, T quick, Effort effort) {
  if (value == T{}) value = effort == Effort::kQuick ? quick : full;
}

absl::Status FinishTtft(Parser& parser) {
  Settings& s = parser.settings;
  s.is_on_cuda = parser.ttft_device.starts_with("cuda");
  if (parser.ttft_device.size() > 5)
    (void)absl::SimpleAtoi(parser.ttft_device.substr(5), &s.device);
  const uint32_t block_tokens = s.is_on_cuda ? 256 : 16;
  Default(s.block_tokens, block_tokens, block_tokens, s.effort);
  if (s.is_on_cuda) Default(s.suffix_tokens, uint32_t{64}, uint32_t{64}, s.effort);
  const uint64_t tier_bytes = uint64_t{s.is_on_cuda ? 12u : 2u} << 30;
  if (parser.tier_size.empty()) {
    s.tier_bytes = tier_bytes;
  } else {
    ASSIGN_OR_RETURN(s.tier_bytes, ParseBytes(parser.tier_size));
  }
  return absl::OkStatus();
}

absl::Status Finish(Parser& parser) {
  Settings& s = parser.settings;
  if (s.suite.empty()) {
    return absl::InvalidArgumentError(
        "no suite is given; valid: store, index, nvme, pages, ttft; see kvbench --help");
  }
  s.effort = parser.is_quick ? Effort::kQuick : Effort::kFull;
  if (!parser.set_size.empty()) {
    ASSIGN_OR_RETURN(s.set_bytes, ParseBytes(parser.set_size));
    if (s.set_bytes < kSetBytesMin) {
      return absl::InvalidArgumentError(
          absl::StrCat("--set-size ", parser.set_size, " is too small; valid is 16MiB and more"));
    }
  }
  for (const std::string& peer : s.versus) {
    if (!peer.starts_with("redis=unix:")) {
      return absl::InvalidArgumentError(
          absl::StrCat("--versus ", peer, " is not known; valid is redis=unix:PATH"));
    }
  }
  Default(s.repeats, 5, 2, s.effort);
  Default(s.set_bytes, uint64_t{2} << 30, uint64_t{64} << 20, s.effort);
  Default(s.index_blocks, uint64_t{1'000'000}, uint64_t{20'000}, s.effort);
  Default(s.restart_blocks, uint64_t{1'000'000}, uint64_t{2'000}, s.effort);
  RETURN_IF_ERROR(FinishTtft(parser));
  if (s.prompt_tokens.empty()) {
    s.prompt_tokens = s.is_quick() ? std::vector<uint32_t>{128} : std::vector<uint32_t>{1024, 4096};
  }
  if (s.work_dir.empty()) s.work_dir = "/var/tmp";
  std::error_code error;
  if (s.bin_dir.empty()) {
    s.bin_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  }
  s.work_dir = std::filesystem::absolute(s.work_dir, error).string();
  if (!std::filesystem::is_directory(s.work_dir, error)) {
    return absl::InvalidArgumentError(absl::StrCat("--work ", s.work_dir, " is no folder"));
  }
  return absl::OkStatus();
}

}  // namespace

std::variant<Settings, HelpText, absl::Status> ParseCommandLine(int argc, const char* const* argv) {
  Parser parser;
  try {
    parser.app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return HelpText{parser.app.help()};
  } catch (const CLI::CallForAllHelp&) {
    return HelpText{parser.app.help("", CLI::AppFormatMode::All)};
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(error.what(), "; see kvbench --help"));
  }
  if (absl::Status status = Finish(parser); !status.ok()) return status;
  return parser.settings;
}

}  // namespace kvstore::bench
