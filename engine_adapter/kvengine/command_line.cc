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

constexpr const char* kBatchDescription =
    "Answer requests of a file, one after another: a JSON object a line in, one a line out";
constexpr const char* kBatchExample = R"(
A request has one of "prompt", "prompt_file", "prompt_ids" (a list) and "prompt_ids_file"; it may have "max_tokens",
"temperature", "top_k", "top_p", "seed", "logits_out" (a file). Its answer is what `kvengine generate --json` prints.

Example:
  echo '{"prompt": "Once upon a time", "max_tokens": 20}' | kvengine batch --model build/models/smollm2 --requests -
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

void AddEngineOptions(CLI::App& app, EngineOptions& options) {
  app.add_option("--model", options.model_dir, "Hugging Face folder of the model")
      ->required()
      ->type_name("DIR");
  app.add_option_function<std::string>(
         "--device",
         [&options](const std::string& name) {
           options.device = name == "cuda" ? Device::kCuda : Device::kCpu;
         },
         "Where to compute: cpu, or cuda (bf16, compute capability 9.0)")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->type_name("cpu|cuda");
  CLI::Option* store =
      app.add_option("--store", options.store_target, "Daemon to load and save prefixes");
  store->type_name("unix:PATH");
  store->check([](const std::string& target) {
    return target.starts_with("unix:") && target.size() > 5
               ? std::string()
               : "\"" + target + "\" is not a Unix socket target; write unix:PATH";
  });
  app.add_flag_callback(
         "--no-store", [] {}, "Reuse nothing, keep nothing (the default)")
      ->excludes(store);
  app.add_option("--block-tokens", options.block_tokens, "Tokens in a KV block")
      ->check(CLI::Range(int64_t{1}, KvLayout::kBlockTokensMax))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--kv-dtype",
         [&options](const std::string& name) {
           options.kv_dtype = name == "f32" ? KvDtype::kF32 : KvDtype::kBf16;
         },
         "Element type of keys and values; bf16 where not given")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->type_name("TYPE");
  app.add_option("--threads", options.num_threads, "0 is all CPUs of this process")
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

// What the CUDA back-end does not do is refused, not ignored.
void CheckDevice(const EngineOptions& options) {
  if (options.device == Device::kCuda && options.kv_dtype != KvDtype::kBf16) {
    throw CLI::ValidationError("--device cuda", "keeps keys and values in bf16 only");
  }
}

}  // namespace

std::variant<GenerateCommand, BatchCommand, int> ParseCommandLine(int argc, char** argv) {
  GenerateCommand command;
  BatchCommand batch_command;
  CLI::App app{"Run a language model on this machine.", "kvengine"};
  app.require_subcommand(1);
  CLI::App* generate = app.add_subcommand("generate", "Continue one prompt");
  AddEngineOptions(*generate, command.engine);
  AddPromptOptions(*generate, command);
  AddSamplingOptions(*generate, command);
  AddOutputOptions(*generate, command);
  generate->footer(kExample);
  CLI::App* batch = app.add_subcommand("batch", kBatchDescription);
  AddEngineOptions(*batch, batch_command.engine);
  batch
      ->add_option("--requests", batch_command.requests_file,
                   "File with a request a line; - is standard input")
      ->required()
      ->type_name("FILE");
  batch->footer(kBatchExample);
  app.footer(kExample);
  try {
    app.parse(argc, argv);
    CheckDevice(batch->parsed() ? batch_command.engine : command.engine);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  if (batch->parsed()) return batch_command;
  return command;
}

}  // namespace kvstore::engine
