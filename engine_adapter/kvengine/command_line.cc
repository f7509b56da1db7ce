#include "engine_adapter/kvengine/command_line.h"

#include <CLI/CLI.hpp>
#include <string>

namespace kvstore::engine {
namespace {

constexpr const char* kExample = R"(
Example:
  kvengine generate --model build/models/smollm2 --chat \
    --prompt-file /usr/share/common-licenses/GPL-2 --question "May I sell copies?" --json
)";

void AddPromptOptions(CLI::App& app, GenerateCommand& command) {
  CLI::Option_group* prompt = app.add_option_group("prompt", "What to continue: exactly one");
  prompt->add_option("--prompt", command.prompt, "Text")->type_name("TEXT");
  CLI::Option* file = prompt->add_option("--prompt-file", command.prompt_file,
                                         "File with the text, UTF-8; - is standard input");
  file->type_name("FILE");
  CLI::Option* ids =
      prompt->add_option("--prompt-ids", command.prompt_ids_file,
                         "File with token ids, one per whitespace; - is standard input");
  ids->type_name("FILE");
  prompt->require_option(1);
  app.add_option("--question", command.question, "Put behind the text of --prompt-file")
      ->type_name("TEXT")
      ->needs(file);
  app.add_flag("--chat", command.is_chat, "Wrap the prompt in the model's chat template")
      ->excludes(ids);
}

void AddSamplingOptions(CLI::App& app, GenerateCommand& command) {
  app.add_option("--max-tokens", command.max_tokens, "Tokens to generate at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--temperature", command.sampling.temperature, "0 is greedy")
      ->check(CLI::Range(0.0f, 100.0f))
      ->capture_default_str();
  app.add_option("--top-k", command.sampling.top_k, "Sample among the k most likely; 0 is all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31))
      ->capture_default_str();
  app.add_option("--top-p", command.sampling.top_p,
                 "Sample among the fewest that reach this probability")
      ->check(CLI::Range(1e-6f, 1.0f))
      ->capture_default_str();
  app.add_option("--seed", command.seed, "Of the sampling")->capture_default_str();
}

void AddEngineOptions(CLI::App& app, GenerateCommand& command) {
  app.add_option_function<std::string>(
         "--device",
         [&command](const std::string& name) {
           command.device = name == "cuda" ? Device::kCuda : Device::kCpu;
         },
         "Where to compute: cpu, or cuda (bf16, compute capability 9.0)")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->type_name("cpu|cuda");
  CLI::Option* store =
      app.add_option("--store", command.store_target, "Daemon to load and save prefixes");
  store->type_name("unix:PATH");
  store->check([](const std::string& target) {
    return target.starts_with("unix:") && target.size() > 5
               ? std::string()
               : "\"" + target + "\" is not a Unix socket target; write unix:PATH";
  });
  app.add_flag_callback(
         "--no-store", [] {}, "Reuse nothing, keep nothing (the default)")
      ->excludes(store);
  app.add_option("--block-tokens", command.block_tokens, "Tokens in a KV block")
      ->check(CLI::Range(int64_t{1}, KvLayout::kBlockTokensMax))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--kv-dtype",
         [&command](const std::string& name) {
           command.kv_dtype = name == "f32" ? KvDtype::kF32 : KvDtype::kBf16;
         },
         "Element type of keys and values; bf16 where not given")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->type_name("TYPE");
  app.add_option("--threads", command.num_threads, "0 is all CPUs of this process")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
}

void AddOutputOptions(CLI::App& app, GenerateCommand& command) {
  app.add_flag("--json", command.has_json_output, "One JSON object on standard output");
  app.add_option("--timeline", command.timeline_file,
                 "Write a Chrome trace of the request (chrome://tracing, ui.perfetto.dev)")
      ->type_name("FILE.json");
  app.add_option("--logits-out", command.logits_file,
                 "Write the logits of every step, float32 little-endian [steps, vocabulary]")
      ->type_name("FILE");
}

// What the CUDA back-end does not do yet is refused, not ignored.
void CheckDevice(const GenerateCommand& command) {
  if (command.device != Device::kCuda) return;
  if (!command.store_target.empty()) {
    throw CLI::ValidationError(
        "--device cuda", "does not work with --store: pages of a daemon are not in device memory");
  }
  if (command.kv_dtype != KvDtype::kBf16) {
    throw CLI::ValidationError("--device cuda", "keeps keys and values in bf16 only");
  }
}

}  // namespace

std::variant<GenerateCommand, int> ParseCommandLine(int argc, char** argv) {
  GenerateCommand command;
  CLI::App app{"Run a language model on this machine.", "kvengine"};
  app.require_subcommand(1);
  CLI::App* generate = app.add_subcommand("generate", "Continue one prompt");
  generate->add_option("--model", command.model_dir, "Hugging Face folder of the model")
      ->required()
      ->type_name("DIR");
  AddPromptOptions(*generate, command);
  AddSamplingOptions(*generate, command);
  AddEngineOptions(*generate, command);
  AddOutputOptions(*generate, command);
  generate->footer(kExample);
  app.footer(kExample);
  try {
    app.parse(argc, argv);
    CheckDevice(command);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  return command;
}

}  // namespace kvstore::engine
