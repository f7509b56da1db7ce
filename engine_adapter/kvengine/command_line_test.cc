#include "engine_adapter/kvengine/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvstore::engine {
namespace {

Command Parse(std::vector<std::string> words) {
  words.insert(words.begin(), "kvengine");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

TEST(CommandLine, ReadsEveryFlagOfGenerate) {
  const auto parsed = Parse({"generate",
                             "--model",
                             "m",
                             "--prompt-file",
                             "f",
                             "--question",
                             "why?",
                             "--chat",
                             "--max-tokens",
                             "7",
                             "--block-tokens",
                             "32",
                             "--kv-dtype",
                             "f32",
                             "--threads",
                             "3",
                             "--temperature",
                             "0.5",
                             "--top-k",
                             "9",
                             "--top-p",
                             "0.8",
                             "--seed",
                             "11",
                             "--no-store",
                             "--device",
                             "cpu",
                             "--timeline",
                             "t.json",
                             "--logits-out",
                             "l",
                             "--json"});
  const auto* command = std::get_if<GenerateCommand>(&parsed);
  ASSERT_NE(command, nullptr);
  EXPECT_EQ(command->engine.model_dir, "m");
  EXPECT_EQ(command->prompt_file, "f");
  EXPECT_EQ(command->question, "why?");
  EXPECT_TRUE(command->is_chat);
  EXPECT_EQ(command->max_tokens, 7);
  EXPECT_EQ(command->engine.block_tokens, 32);
  EXPECT_EQ(command->engine.kv_dtype, KvDtype::kF32);
  EXPECT_EQ(command->engine.num_threads, 3);
  EXPECT_FLOAT_EQ(command->sampling.temperature, 0.5f);
  EXPECT_EQ(command->sampling.top_k, 9);
  EXPECT_FLOAT_EQ(command->sampling.top_p, 0.8f);
  EXPECT_EQ(command->seed, 11u);
  EXPECT_EQ(command->timeline_file, "t.json");
  EXPECT_EQ(command->logits_file, "l");
  EXPECT_TRUE(command->has_json_output);
}

TEST(CommandLine, WrongUsageIsExitCodeTwo) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"generate"},
      {"generate", "--model", "m"},
      {"generate", "--prompt", "p"},
      {"generate", "--model", "m", "--prompt", "p", "--prompt-file", "f"},
      {"generate", "--model", "m", "--prompt", "p", "--question", "q"},
      {"generate", "--model", "m", "--prompt-ids", "f", "--chat"},
      {"generate", "--model", "m", "--prompt", "p", "--max-tokens", "0"},
      {"generate", "--model", "m", "--prompt", "p", "--max-tokens", "many"},
      {"generate", "--model", "m", "--prompt", "p", "--block-tokens", "65537"},
      {"generate", "--model", "m", "--prompt", "p", "--kv-dtype", "fp8"},
      {"generate", "--model", "m", "--prompt", "p", "--device", "tpu"},
      {"generate", "--model", "m", "--prompt", "p", "--device", "cuda", "--kv-dtype", "f32"},
      {"batch", "--model", "m"},
      {"batch", "--requests", "-"},
      {"generate", "--model", "m", "--prompt", "p", "--top-p", "0"},
      {"generate", "--model", "m", "--prompt", "p", "--temperature", "-1"},
      {"generate", "--model", "m", "--prompt", "p", "--unknown"},
      {"serve-everything"},
      {"serve"},
      {"serve", "--model", "m", "--http", "8000"},
      {"serve", "--model", "m", "--http", "example.org:8000"},
      {"serve", "--model", "m", "--http", "127.0.0.1:65536"},
      {"serve", "--model", "m", "--http", "0.0.0.0:8000"},
      {"serve", "--model", "m", "--http", "[::]:8000"},
      {"serve", "--model", "m", "--grpc", "10.0.0.1:8001"},
      {"serve", "--model", "m", "--grpc", "unix:"},
      {"serve", "--model", "m", "--kv-memory", "lots"},
      {"serve", "--model", "m", "--drain-time", "soon"},
      {"serve", "--model", "m", "--max-sequences", "0"},
      {"serve", "--model", "m", "--step-tokens", "7"},
      {"serve", "--model", "m", "--device", "cuda", "--kv-dtype", "f32"},
  };
  for (const auto& words : wrong) {
    const auto parsed = Parse(words);
    const int* exit_code = std::get_if<int>(&parsed);
    ASSERT_NE(exit_code, nullptr) << testing::PrintToString(words);
    EXPECT_EQ(*exit_code, kExitUsage) << testing::PrintToString(words);
  }
}

TEST(CommandLine, TheDeviceIsTheCpuUnlessSaid) {
  const std::vector<std::string> words = {"generate", "--model", "m", "--prompt", "p"};
  std::vector<std::string> on_cuda = words;
  on_cuda.insert(on_cuda.end(), {"--device", "cuda"});
  const auto cpu = Parse(words), cuda = Parse(on_cuda);
  EXPECT_EQ(std::get<GenerateCommand>(cpu).engine.device, Device::kCpu);
  EXPECT_EQ(std::get<GenerateCommand>(cuda).engine.device, Device::kCuda);
}

TEST(CommandLine, BatchHasTheOptionsOfTheEngine) {
  const auto parsed = Parse({"batch", "--model", "m", "--requests", "-", "--store", "unix:s",
                             "--device", "cuda", "--block-tokens", "256"});
  const auto* command = std::get_if<BatchCommand>(&parsed);
  ASSERT_NE(command, nullptr);
  EXPECT_EQ(command->requests_file, "-");
  EXPECT_EQ(command->engine.model_dir, "m");
  EXPECT_EQ(command->engine.store_target, "unix:s");
  EXPECT_EQ(command->engine.device, Device::kCuda);
  EXPECT_EQ(command->engine.block_tokens, 256);
}

TEST(CommandLine, ReadsTheFlagsOfServe) {
  const auto parsed = Parse({"serve",   "--model",
                             "m",       "--http",
                             "[::1]:0", "--grpc",
                             "unix:s",  "--store",
                             "unix:t",  "--served-name",
                             "n",       "--context",
                             "100",     "--kv-memory",
                             "1MiB",    "--queue",
                             "0",       "--max-sequences",
                             "3",       "--step-tokens",
                             "9",       "--connections",
                             "17",      "--drain-time",
                             "250ms",   "--default-max-tokens",
                             "5"});
  const auto* command = std::get_if<ServeCommand>(&parsed);
  ASSERT_NE(command, nullptr);
  EXPECT_EQ(command->engine.store_target, "unix:t");
  EXPECT_EQ(command->http_address, "[::1]:0");
  EXPECT_EQ(command->grpc_address, "unix:s");
  EXPECT_EQ(command->model_name, "n");
  EXPECT_EQ(command->context_tokens, 100);
  EXPECT_EQ(command->kv_bytes, uint64_t{1} << 20);
  EXPECT_EQ(command->queue_max, 0);
  EXPECT_EQ(command->sequences_max, 3);
  EXPECT_EQ(command->step_tokens, 9);
  EXPECT_EQ(command->connections_max, 17u);
  EXPECT_EQ(command->drain_time, absl::Milliseconds(250));
  EXPECT_EQ(command->default_max_tokens, 5);
}

TEST(CommandLine, BeyondLoopbackServeNeedsAKey) {
  const std::vector<std::string> words = {"serve", "--model", "m", "--http", "0.0.0.0:8000"};
  std::vector<std::string> with_key = words;
  with_key.insert(with_key.end(), {"--api-key-file", "k"});
  const auto without = Parse(words), with = Parse(with_key);
  EXPECT_EQ(std::get<int>(without), kExitUsage);
  EXPECT_EQ(std::get<ServeCommand>(with).api_key_file, "k");
}

TEST(CommandLine, HelpShowsAnExampleAndIsExitCodeZero) {
  testing::internal::CaptureStdout();
  const auto parsed = Parse({"generate", "--help"});
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_EQ(std::get<int>(parsed), kExitDone);
  EXPECT_THAT(text, testing::HasSubstr("Example:\n  kvengine generate --model"));
}

}  // namespace
}  // namespace kvstore::engine
