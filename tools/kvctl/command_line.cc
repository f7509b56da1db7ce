#include "tools/kvctl/command_line.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/units.h"

namespace kvstore::kvctl {
namespace {

constexpr char kVersion[] = "kvctl " KVSTORE_VERSION;
const std::vector<std::string> kTierNames = {"gpu", "dram", "nvme"};
const std::vector<std::string> kShells = {"bash", "zsh", "fish"};

// The parser and the values that it writes into.
struct Parser {
  Arguments arguments;
  std::string target, admin;
  std::string timeout = "5s";
  CLI::App app{"Inspect and administer a kvstored daemon.", "kvctl"};

  Parser();
  CLI::App* Add(CommandKind kind, const std::string& name, const std::string& description,
                const std::string& example);
  void AddName(CLI::App* command);
  void AddTokens(CLI::App* command);
  void AddDataCommands();
  void AddBlockCommands();
  void AddQuota();
};

CLI::App* Parser::Add(CommandKind kind, const std::string& name, const std::string& description,
                      const std::string& example) {
  CLI::App* command = app.add_subcommand(name, description);
  command->fallthrough();  // global flags may follow the command
  command->footer("Example:\n  " + example);
  command->callback([this, kind] { arguments.command = kind; });
  return command;
}

void Parser::AddName(CLI::App* command) {
  command->add_option("NAME", arguments.name, "namespace: its name, or its fingerprint in hex")
      ->required();
}

void Parser::AddTokens(CLI::App* command) {
  command
      ->add_option("--tokens", arguments.tokens_path,
                   "token ids separated by whitespace; - is standard input")
      ->required()
      ->type_name("FILE");
}

void Parser::AddDataCommands() {
  CLI::App* open = Add(CommandKind::kOpen, "open", "open a namespace and print its fingerprint",
                       "kvctl open chat --model llama-3-8b --dtype bf16 --block-tokens 256 "
                       "--slices 32 --slice-bytes 1MiB\n  kvctl open chat --spec chat.toml");
  AddName(open);
  SpecFlags& spec = arguments.spec;
  CLI::Option* file = open->add_option("--spec", arguments.spec_path,
                                       "TOML file: the flags below as keys (block_tokens = 256)")
                          ->type_name("FILE");
  open->add_option("--model", spec.model, "model id")->excludes(file);
  open->add_option("--revision", spec.revision, "digest of config and weights")->excludes(file);
  open->add_option("--adapter", spec.adapter, "LoRA id")->excludes(file);
  open->add_option("--dtype", spec.dtype, "of the KV values: bf16, f16, f32, ...")->excludes(file);
  open->add_option("--layout", spec.layout, "order of values in a slice; default hnd")
      ->excludes(file);
  open->add_option("--block-tokens", spec.block_tokens, "tokens a block")->excludes(file);
  open->add_option("--slices", spec.slices, "slices a page: one a layer")->excludes(file);
  open->add_option("--slice-bytes", spec.slice_bytes, "bytes a slice, such as 64KiB")
      ->excludes(file);
  open->add_option("--tenant", spec.tenant, "default: the caller's own")->excludes(file);

  CLI::App* put = Add(CommandKind::kPut, "put", "store the blocks of a token prefix",
                      "kvctl put chat --tokens prompt.ids --data pages.bin");
  AddName(put);
  AddTokens(put);
  put->add_option("--data", arguments.data_path, "the pages one after another")
      ->required()
      ->type_name("FILE");

  CLI::App* get = Add(CommandKind::kGet, "get", "write the longest stored prefix to a file",
                      "kvctl get chat --tokens prompt.ids --out pages.bin");
  AddName(get);
  AddTokens(get);
  get->add_option("--out", arguments.out_path, "replaced only when all pages are there")
      ->required()
      ->type_name("FILE");

  CLI::App* match = Add(CommandKind::kMatch, "match", "length of the longest stored prefix",
                        "echo 1 2 3 4 | kvctl match chat --tokens -");
  AddName(match);
  AddTokens(match);
}

void Parser::AddBlockCommands() {
  CLI::App* list = Add(CommandKind::kList, "ls", "list blocks, most recently used first",
                       "kvctl ls chat --tier dram --limit 20");
  AddName(list);
  list->add_option("--tier", arguments.tier, "only blocks that lie in this tier")
      ->check(CLI::IsMember(kTierNames));
  list->add_option("--limit", arguments.limit, "1 to 10000; default 100")
      ->check(CLI::Range(1, 10000));

  CLI::App* evict = Add(CommandKind::kEvict, "evict",
                        "remove the copies in one tier of blocks that another tier holds too",
                        "kvctl evict chat --tier gpu");
  AddName(evict);
  evict->add_option("--tier", arguments.tier, "the tier to empty")
      ->required()
      ->check(CLI::IsMember(kTierNames));

  CLI::App* clear =
      Add(CommandKind::kClear, "clear", "forget all blocks of a namespace", "kvctl clear chat");
  AddName(clear);

  CLI::App* verify = Add(CommandKind::kVerify, "verify",
                         "read pages back and check every checksum; bad pages are dropped",
                         "kvctl verify --tier nvme --repair");
  verify->add_option("--tier", arguments.tier, "default: all")->check(CLI::IsMember(kTierNames));
  verify->add_flag("--repair", arguments.repair,
                   "write good copies from other tiers in place of bad pages");
}

void Parser::AddQuota() {
  CLI::App* quota = Add(CommandKind::kQuota, "quota", "show and set what tenants may use",
                        "kvctl quota\n  kvctl quota team-a --tier dram --bytes 40GiB");
  CLI::Option* tenant = quota->add_option("TENANT", arguments.tenant, "default: all");
  CLI::Option* tier = quota->add_option("--tier", arguments.tier, "the tier whose quota is set")
                          ->check(CLI::IsMember(kTierNames));
  CLI::Option* bytes =
      quota->add_option("--bytes", arguments.bytes, "such as 40GiB; none removes the quota");
  bytes->needs(tenant)->needs(tier);
}

Parser::Parser() {
  app.require_subcommand(1);
  app.set_version_flag("--version", kVersion);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matched, 4 no daemon there.\n"
      "Example:\n  kvctl --target unix:/run/kvstore/kvstored.sock status");
  app.add_option("--target", target,
                 "unix:PATH or tcp:HOST:PORT; default $KVSTORE_TARGET, then the default socket");
  app.add_option("--admin", admin,
                 "unix:PATH of server.admin; default PATH.admin beside a unix target");
  app.add_option("--tls-cert", arguments.tls_cert, "PEM certificate to show at a tcp target")
      ->type_name("FILE");
  app.add_option("--tls-key", arguments.tls_key, "its PEM key")->type_name("FILE");
  app.add_option("--tls-ca", arguments.tls_ca, "PEM authorities of the daemon's certificate")
      ->type_name("FILE");
  app.add_flag("--json", arguments.json, "print one JSON object");
  app.add_option("--timeout", timeout, "give up when nothing happens for so long; default 5s");

  Add(CommandKind::kStatus, "status", "health, tiers, sessions, degraded modes", "kvctl status");
  Add(CommandKind::kTiers, "tiers", "capacity, use and traffic of each tier", "kvctl tiers --json");
  Add(CommandKind::kNamespaces, "namespaces", "what is open or stored, bytes by tier",
      "kvctl namespaces");
  AddDataCommands();
  AddBlockCommands();
  Add(CommandKind::kDrain, "drain",
      "take no more saves and write to NVMe what only memory holds; until resume, or a restart",
      "kvctl drain && systemctl restart kvstored");
  Add(CommandKind::kResume, "resume", "take saves again after a drain", "kvctl resume");
  AddQuota();
  Add(CommandKind::kConfig, "config", "every effective configuration value and its source",
      "kvctl config --json");
  CLI::App* completion = Add(CommandKind::kCompletion, "completion", "print a completion script",
                             "source <(kvctl completion bash)");
  completion->add_option("SHELL", arguments.shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember(kShells));
}

bool AsksForJson(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--json") return true;
  }
  return false;
}

// The parser says "a subcommand is required" of a misspelt one.
std::string Explain(const CLI::App& app, const CLI::ParseError& error) {
  if (!app.get_subcommands().empty()) {
    return absl::StrCat(error.what(), "; see kvctl ", app.get_subcommands().front()->get_name(),
                        " --help");
  }
  for (const std::string& word : app.remaining()) {
    if (!word.starts_with('-'))
      return absl::StrCat("\"", word, "\" is no command; see kvctl --help");
  }
  return absl::StrCat(error.what(), "; see kvctl --help");
}

absl::Status FinishArguments(Parser& parser) {
  absl::StatusOr<absl::Duration> timeout = ParseDuration(parser.timeout);
  if (!timeout.ok()) return timeout.status();
  if (*timeout < absl::Milliseconds(1) || *timeout > absl::Hours(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--timeout ", parser.timeout, " is out of range; valid is 1ms to 1h"));
  }
  parser.arguments.timeout = *timeout;
  if (parser.app.count("--target") > 0) parser.arguments.target = parser.target;
  if (parser.app.count("--admin") > 0) parser.arguments.admin = parser.admin;
  const Arguments& given = parser.arguments;
  const size_t tls_files = !given.tls_cert.empty() + !given.tls_key.empty() + !given.tls_ca.empty();
  if (tls_files != 0 && tls_files != 3)
    return absl::InvalidArgumentError("TLS needs all of --tls-cert, --tls-key and --tls-ca");
  return absl::OkStatus();
}

OptionDescription Describe(const CLI::Option& option) {
  OptionDescription out;
  out.flag = option.get_name();
  out.description = option.get_description();
  out.takes_value = option.get_items_expected_max() > 0;
  out.takes_file = option.get_type_name().find("FILE") != std::string::npos;
  if (out.flag == "--tier") out.values = kTierNames;
  return out;
}

std::vector<OptionDescription> DescribeOptions(const CLI::App& app) {
  std::vector<OptionDescription> out;
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_lnames().empty()) out.push_back(Describe(*option));
  }
  return out;
}

}  // namespace

std::variant<Arguments, HelpText, UsageError> ParseCommandLine(int argc, const char* const* argv) {
  auto parser = std::make_unique<Parser>();
  const bool json = AsksForJson(argc, argv);
  try {
    parser->app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return HelpText{parser->app.help()};
  } catch (const CLI::CallForAllHelp&) {
    return HelpText{parser->app.help("", CLI::AppFormatMode::All)};
  } catch (const CLI::CallForVersion&) {
    return HelpText{absl::StrCat(kVersion, "\n")};
  } catch (const CLI::ParseError& error) {
    return UsageError{absl::InvalidArgumentError(Explain(parser->app, error)), json};
  }
  if (absl::Status status = FinishArguments(*parser); !status.ok()) return UsageError{status, json};
  return parser->arguments;
}

ProgramDescription DescribeProgram() {
  const auto parser = std::make_unique<Parser>();
  const CLI::App& app = parser->app;
  ProgramDescription out;
  out.global_options = DescribeOptions(app);
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    CommandDescription& description = out.commands.emplace_back();
    description.name = command->get_name();
    description.description = command->get_description();
    description.options = DescribeOptions(*command);
    if (command->get_name() == "completion") description.values = kShells;
  }
  return out;
}

}  // namespace kvstore::kvctl
