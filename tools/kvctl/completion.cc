// completion: scripts for bash, zsh and fish, made from the command line's own description.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/kvctl/command_line.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/report.h"

namespace kvstore::kvctl {
namespace {

std::string Names(const std::vector<CommandDescription>& commands) {
  return absl::StrJoin(commands, " ",
                       [](std::string* out, const CommandDescription& c) { out->append(c.name); });
}

std::string Flags(const std::vector<OptionDescription>& options) {
  return absl::StrJoin(options, " ",
                       [](std::string* out, const OptionDescription& o) { out->append(o.flag); });
}

// Flags by what follows them, over all commands, for bash's `case`.
struct FlagKinds {
  std::string files, values;
};
FlagKinds SortFlags(const ProgramDescription& program) {
  FlagKinds kinds;
  const auto add = [&kinds](const std::vector<OptionDescription>& options) {
    for (const OptionDescription& option : options) {
      if (!option.takes_value || !option.values.empty()) continue;
      std::string& list = option.takes_file ? kinds.files : kinds.values;
      if (("|" + list + "|").find("|" + option.flag + "|") == std::string::npos) {
        absl::StrAppend(&list, list.empty() ? "" : "|", option.flag);
      }
    }
  };
  add(program.global_options);
  for (const CommandDescription& command : program.commands) add(command.options);
  return kinds;
}

std::string BashScript(const ProgramDescription& program) {
  const FlagKinds kinds = SortFlags(program);
  std::string cases;
  for (const CommandDescription& command : program.commands) {
    absl::StrAppend(&cases, "    ", command.name, ") words=\"", Flags(command.options), " ",
                    absl::StrJoin(command.values, " "), "\" ;;\n");
  }
  return absl::StrCat(R"(# kvctl completion for bash: source <(kvctl completion bash)
_kvctl() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command= word words
  COMPREPLY=()
  case $previous in
    --tier) COMPREPLY=($(compgen -W "gpu dram nvme" -- "$current")); return ;;
    )",
                      kinds.files, R"() COMPREPLY=($(compgen -f -- "$current")); return ;;
    )",
                      kinds.values, R"() return ;;
  esac
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case " )",
                      Names(program.commands), R"( " in *" $word "*) command=$word; break ;; esac
  done
  case $command in
    "") words=")",
                      Names(program.commands), R"(" ;;
)",
                      cases, R"(  esac
  COMPREPLY=($(compgen -W "$words )",
                      Flags(program.global_options), R"(" -- "$current"))
}
complete -F _kvctl kvctl
)");
}

// Inside single quotes, for zsh descriptions "[...]".
std::string ZshText(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') out += "'\\'";
    if (c == '[' || c == ']' || c == ':') out += '\\';
    out += c;
  }
  return out;
}

std::string ZshOption(const OptionDescription& option) {
  std::string action;
  if (option.takes_file)
    action = ":file:_files";
  else if (!option.values.empty())
    action = absl::StrCat(":value:(", absl::StrJoin(option.values, " "), ")");
  else if (option.takes_value)
    action = ":value: ";
  return absl::StrCat(" '", option.flag, "[", ZshText(option.description), "]", action, "'");
}

std::string ZshScript(const ProgramDescription& program) {
  std::string globals, names, cases;
  for (const OptionDescription& option : program.global_options) globals += ZshOption(option);
  for (const CommandDescription& command : program.commands) {
    absl::StrAppend(&names, " '", command.name, ":", ZshText(command.description), "'");
    absl::StrAppend(&cases, "      ", command.name, ") _arguments $globals");
    for (const OptionDescription& option : command.options) cases += ZshOption(option);
    if (!command.values.empty())
      absl::StrAppend(&cases, " '1:value:(", absl::StrJoin(command.values, " "), ")'");
    cases += " ;;\n";
  }
  return absl::StrCat(R"(#compdef kvctl
# kvctl completion for zsh: kvctl completion zsh > a folder of $fpath, as _kvctl
_kvctl() {
  local -a globals commands
  local state line
  globals=()",
                      globals, R"()
  commands=()",
                      names, R"()
  _arguments -C $globals '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument) case $line[1] in
)",
                      cases, R"(    esac ;;
  esac
}
_kvctl "$@"
)");
}

std::string FishText(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string FishOption(const std::string& condition, const OptionDescription& option) {
  std::string action;
  if (option.takes_file)
    action = " -r -F";
  else if (!option.values.empty())
    action = absl::StrCat(" -x -a '", absl::StrJoin(option.values, " "), "'");
  else if (option.takes_value)
    action = " -x";
  return absl::StrCat("complete -c kvctl", condition, " -l ", option.flag.substr(2), action,
                      " -d '", FishText(option.description), "'\n");
}

std::string FishScript(const ProgramDescription& program) {
  std::string out =
      "# kvctl completion for fish: kvctl completion fish | source\ncomplete -c kvctl -f\n";
  for (const OptionDescription& option : program.global_options) out += FishOption("", option);
  for (const CommandDescription& command : program.commands) {
    absl::StrAppend(&out, "complete -c kvctl -n __fish_use_subcommand -a ", command.name, " -d '",
                    FishText(command.description), "'\n");
    const std::string condition =
        absl::StrCat(" -n '__fish_seen_subcommand_from ", command.name, "'");
    for (const OptionDescription& option : command.options) out += FishOption(condition, option);
    for (const std::string& value : command.values)
      absl::StrAppend(&out, "complete -c kvctl", condition, " -a ", value, "\n");
  }
  return out;
}

}  // namespace

ExitCode RunCompletion(const std::string& shell) {
  const ProgramDescription program = DescribeProgram();
  PrintText(shell == "bash"  ? BashScript(program)
            : shell == "zsh" ? ZshScript(program)
                             : FishScript(program));
  return ExitCode::kDone;
}

}  // namespace kvstore::kvctl
