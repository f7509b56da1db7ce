#include "engine_adapter/kvengine/command_line.h"

#include <CLI/CLI.hpp>
#include <string>

#include "engine_adapter/serving/listen_address.h"
#include "engine_adapter/serving/scheduler.h"
#include "kvstore/base/units.h"

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

constexpr const char* kServeDescription =
    "Answer requests by HTTP as OpenAI's API does, and by gRPC, many at a time";
constexpr const char* kServeExample = R"(
HTTP: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics. gRPC: Engine.Generate (engine.proto).
SIGTERM: no new requests, those under way are finished, at most --drain-time; a second one ends at once.

Example:
  kvengine serve --model build/models/smollm2 --http 127.0.0.1:8000 --store unix:/run/kvstore/kvstored.sock
  curl -N localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "smollm2", "stream": true, "messages": [{"role": "user", "content": "What is a KV cache?"}]}'
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

// Empty, or what is wrong.
template <typename Parse>
CLI::Validator Parses(Parse parse) {
  return CLI::Validator(
      [parse](const std::string& text) {
        const auto parsed = parse(text);
        return parsed.ok() ? std::string() : std::string(parsed.status().message());
      },
      "");
}

void AddAddressOptions(CLI::App& app, ServeCommand& command) {
  app.add_option("--http", command.http_address,
                 "Where to listen; beyond loopback only with --api-key-file. Port 0: any")
      ->check(Parses(ParseListenAddress))
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--grpc", command.grpc_address, "Serve gRPC too, on a socket or a port")
      ->check([](const std::string& text) {
        if (text.starts_with("unix:") && text.size() > 5) return std::string();
        const auto address = ParseListenAddress(text);
        return address.ok() ? std::string() : "\"" + text + "\": write unix:PATH or HOST:PORT";
      })
      ->type_name("unix:PATH|HOST:PORT");
  app.add_option("--api-key-file", command.api_key_file,
                 "Ask for the key in this file (mode 0400 or 0600)")
      ->type_name("FILE");
  app.add_option("--served-name", command.model_name,
                 "What requests call the model; the folder's name where not given")
      ->type_name("NAME");
}

void AddServingOptions(CLI::App& app, ServeCommand& command) {
  app.add_option("--context", command.context_tokens,
                 "Tokens of prompt and answer together; 0: all that the model and --kv-memory have")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--kv-memory",
         [&command](const std::string& text) { command.kv_bytes = *ParseBytes(text); },
         "For keys and values of all requests under way; 4GiB where not given")
      ->check(Parses([](const std::string& text) { return ParseBytes(text); }))
      ->type_name("SIZE");
  app.add_option("--max-sequences", command.sequences_max, "Requests under way at a time")
      ->check(CLI::Range(int64_t{1}, SchedulerOptions::kSequencesMax))
      ->capture_default_str();
  app.add_option("--queue", command.queue_max, "Requests that wait; the next one gets 429")
      ->check(CLI::Range(int64_t{0}, SchedulerOptions::kQueueMax))
      ->capture_default_str();
  app.add_option("--step-tokens", command.step_tokens,
                 "Tokens computed in one step: more is faster for prompts, slower for the others")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--default-max-tokens", command.default_max_tokens,
                 "Of chats that name no max_tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--connections", command.connections_max, "HTTP connections; idle ones give way")
      ->check(CLI::Range(1u, 65536u))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--drain-time",
         [&command](const std::string& text) { command.drain_time = *ParseDuration(text); },
         "For requests under way at SIGTERM; 30s where not given")
      ->check(Parses(ParseDuration))
      ->type_name("TIME");
}

void CheckServe(const ServeCommand& command) {
  if (command.step_tokens < command.sequences_max) {
    throw CLI::ValidationError("--step-tokens", "is less than --max-sequences");
  }
  const auto is_loopback = [](const std::string& address) {
    return address.empty() || address.starts_with("unix:") ||
           ParseListenAddress(address)->is_loopback;
  };
  if (!command.api_key_file.empty()) return;
  if (!is_loopback(command.http_address) || !is_loopback(command.grpc_address)) {
    throw CLI::ValidationError("--http, --grpc",
                               "others than loopback addresses need --api-key-file (and a proxy "
                               "with TLS before them)");
  }
}

// What the CUDA back-end does not do is refused, not ignored.
void CheckDevice(const EngineOptions& options) {
  if (options.device == Device::kCuda && options.kv_dtype != KvDtype::kBf16) {
    throw CLI::ValidationError("--device cuda", "keeps keys and values in bf16 only");
  }
}

}  // namespace

Command ParseCommandLine(int argc, char** argv) {
  GenerateCommand command;
  BatchCommand batch_command;
  ServeCommand serve_command;
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
  CLI::App* serve = app.add_subcommand("serve", kServeDescription);
  AddEngineOptions(*serve, serve_command.engine);
  AddAddressOptions(*serve, serve_command);
  AddServingOptions(*serve, serve_command);
  serve->footer(kServeExample);
  app.footer(kExample);
  try {
    app.parse(argc, argv);
    CheckDevice(batch->parsed()   ? batch_command.engine
                : serve->parsed() ? serve_command.engine
                                  : command.engine);
    if (serve->parsed()) CheckServe(serve_command);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  if (batch->parsed()) return batch_command;
  if (serve->parsed()) return serve_command;
  return command;
}

}  // namespace kvstore::engine
