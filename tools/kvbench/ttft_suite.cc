// Time to first token of the engine on one prompt: cold, and with its KV from each tier.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/daemon.h"
#include "tools/kvbench/program.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/results.h"
#include "tools/kvbench/suites.h"
#include "tools/kvbench/work_folder.h"

namespace kvstore::bench {
namespace {

constexpr absl::Duration kEngineTime = absl::Minutes(20);
constexpr absl::Duration kWriteBehindTime = absl::Minutes(1);
// GPU and DRAM hits take 8 % of a cold prefill at most, NVMe hits 10 %: mostly the tail that is no
// whole block.
constexpr double kMemorySpeedup = 12.5, kNvmeSpeedup = 10;
constexpr double kPrefillShare = 0.6;
constexpr uint32_t kTokensToGenerate = 2;

// What kvengine says of one request.
struct Request {
  double ttft_ms = 0;
  uint64_t reused_tokens = 0;
  uint64_t reused_from_source = 0;
  std::vector<uint32_t> output_ids;
};

// Runs a program to its end and parses what it prints as JSON.
absl::StatusOr<nlohmann::json> RunForJson(const std::vector<std::string>& arguments,
                                          const WorkFolder& folder) {
  const std::string output = folder / "out.json", errors = folder / "errors";
  std::remove(output.c_str());
  std::remove(errors.c_str());
  ASSIGN_OR_RETURN(Program program, Program::Start(arguments, output, errors));
  if (absl::Status status = program.Wait(kEngineTime); !status.ok()) {
    return absl::UnavailableError(absl::StrCat(arguments[0], ": ", std::string(status.message()),
                                               "\n", LastLines(errors), LastLines(output)));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(output));
  nlohmann::json parsed = nlohmann::json::parse(text, nullptr, false);
  if (parsed.is_discarded()) {
    return absl::InternalError(absl::StrCat(arguments[0], " printed no JSON"));
  }
  return parsed;
}

// Tokens that every model has: its vocabulary is read from config.json.
absl::StatusOr<uint32_t> VocabularySize(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(model_dir + "/config.json"));
  const nlohmann::json config = nlohmann::json::parse(text, nullptr, false);
  if (config.is_discarded() || !config.contains("vocab_size") ||
      !config["vocab_size"].is_number_unsigned()) {
    return absl::InvalidArgumentError(absl::StrCat(model_dir, ": no vocab_size in config.json"));
  }
  return config["vocab_size"].get<uint32_t>();
}

class TtftRun {
 public:
  TtftRun(const Settings& settings, Daemon& daemon, const WorkFolder& folder, uint32_t vocabulary)
      : settings_(settings), daemon_(daemon), folder_(folder), vocabulary_(vocabulary) {}

  // One new prompt through all sources. ms.
  struct Times {
    Sample cold, gpu, dram, nvme;
  };
  absl::Status Repeat(uint32_t tokens, uint64_t seed, Times& times) {
    RETURN_IF_ERROR(WritePrompt(tokens, seed));
    ASSIGN_OR_RETURN(const Request cold, Generate("cold"));
    if (cold.reused_tokens != 0) return absl::InternalError("a cold run reused tokens");
    times.cold.Add(cold.ttft_ms);
    RETURN_IF_ERROR(WaitUntilWritten());
    RETURN_IF_ERROR(Warm("gpu", cold, times.gpu));
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kGpu));
    RETURN_IF_ERROR(Warm("dram", cold, times.dram));
    RETURN_IF_ERROR(WaitUntilWritten());
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kGpu));
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kDram));
    return Warm("nvme", cold, times.nvme);
  }

 private:
  absl::Status WritePrompt(uint32_t tokens, uint64_t seed) {
    std::ofstream file(Prompt(), std::ios::trunc);
    RandomWords words(seed);
    for (uint32_t i = 0; i < tokens; ++i) file << words.Below(vocabulary_) << '\n';
    file.close();
    return file ? absl::OkStatus() : absl::UnavailableError("cannot write the prompt");
  }
  std::string Prompt() const { return folder_ / "prompt.ids"; }

  absl::StatusOr<Request> Generate(const std::string& source) {
    std::vector<std::string> arguments = {settings_.bin_dir + "/kvengine",
                                          "generate",
                                          "--model",
                                          settings_.model_dir,
                                          "--prompt-ids",
                                          Prompt(),
                                          "--max-tokens",
                                          absl::StrCat(kTokensToGenerate),
                                          "--block-tokens",
                                          absl::StrCat(settings_.block_tokens),
                                          "--threads",
                                          absl::StrCat(settings_.threads),
                                          "--store",
                                          daemon_.target(),
                                          "--json"};
    ASSIGN_OR_RETURN(const nlohmann::json said, RunForJson(arguments, folder_));
    Request request;
    request.ttft_ms = said.value("ttft_ms", 0.0);
    request.reused_tokens = said.value("reused_tokens", uint64_t{0});
    if (said.contains("reused_by_tier")) {
      request.reused_from_source = said["reused_by_tier"].value(source, uint64_t{0});
    }
    request.output_ids = said.value("output_ids", std::vector<uint32_t>());
    return request;
  }

  absl::Status Warm(const std::string& source, const Request& cold, Sample& times) {
    ASSIGN_OR_RETURN(const Request warm, Generate(source));
    if (warm.output_ids != cold.output_ids) {
      return absl::DataLossError(absl::StrCat(source, ": other tokens than the cold run's"));
    }
    if (warm.reused_tokens == 0 || warm.reused_from_source < warm.reused_tokens) {
      return absl::InternalError(absl::StrCat(source, ": of ", warm.reused_tokens,
                                              " reused tokens only ", warm.reused_from_source,
                                              " came from there"));
    }
    times.Add(warm.ttft_ms);
    return absl::OkStatus();
  }

  // Until the colder tiers have what the GPU tier has.
  absl::Status WaitUntilWritten() {
    const absl::Time end = absl::Now() + kWriteBehindTime;
    while (absl::Now() < end) {
      ASSIGN_OR_RETURN(const TierUse gpu, daemon_.Use(client::Tier::kGpu));
      ASSIGN_OR_RETURN(const TierUse dram, daemon_.Use(client::Tier::kDram));
      ASSIGN_OR_RETURN(const TierUse nvme, daemon_.Use(client::Tier::kNvme));
      if (dram.pages >= gpu.pages && nvme.pages >= dram.pages && dram.pages > 0 &&
          gpu.in_flight + dram.in_flight + nvme.in_flight == 0) {
        return absl::OkStatus();
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
    return absl::DeadlineExceededError("pages did not reach the NVMe tier");
  }

  const Settings& settings_;
  Daemon& daemon_;
  const WorkFolder& folder_;
  const uint32_t vocabulary_;
};

void AddTimes(uint32_t tokens, const TtftRun::Times& times, Report& report) {
  const auto name = [tokens](const char* source) {
    return absl::StrCat("ttft/", source, "/", tokens);
  };
  report.Add(MakeResult(name("cold"), "ms", Better::kLower, times.cold));
  const auto add = [&](const char* source, const Sample& sample, double speedup) {
    Result result = MakeResult(name(source), "ms", Better::kLower, sample);
    result.ceiling = Ceiling{.value = times.cold.Median(),
                             .name = "the cold prefill: the ratio is the speed-up"};
    result.budget = RatioBudget("main job", speedup);
    report.Add(std::move(result));
  };
  add("gpu", times.gpu, kMemorySpeedup);
  add("dram", times.dram, kMemorySpeedup);
  add("nvme", times.nvme, kNvmeSpeedup);
}

// The engine's own prefill against what the machine's cores can multiply.
absl::Status MeasurePrefill(const Settings& settings, const WorkFolder& folder, uint32_t tokens,
                            Report& report) {
  ShowProgress(absl::StrCat("prefill of ", tokens, " tokens against peak GEMM"));
  std::vector<std::string> arguments = {settings.bin_dir + "/engine_prefill_bench",
                                        "--model",
                                        settings.model_dir,
                                        "--tokens",
                                        absl::StrCat(tokens),
                                        "--repeats",
                                        absl::StrCat(settings.repeats)};
  if (settings.threads > 0) {
    arguments.push_back("--threads");
    arguments.push_back(absl::StrCat(settings.threads));
  }
  ASSIGN_OR_RETURN(const nlohmann::json said, RunForJson(arguments, folder));
  const double seconds = said.value("median_seconds", 0.0);
  if (seconds <= 0) return absl::InternalError("engine_prefill_bench gave no median_seconds");
  Result result = MakeResult(absl::StrCat("ttft/prefill_rate/", tokens), "GFLOP/s", Better::kHigher,
                             said.value("gflop", 0.0) / seconds);
  result.ceiling = Ceiling{.value = said.value("median_peak_gflops", 0.0),
                           .name = "sgemm of 2048^3, same threads"};
  result.budget = RatioBudget("prefill", kPrefillShare);
  result.n = static_cast<uint64_t>(settings.repeats);
  result.max = said.value("gflops", result.median);
  report.Add(std::move(result));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTtftSuite(const Settings& settings, Report& report) {
  ASSIGN_OR_RETURN(const uint32_t vocabulary, VocabularySize(settings.model_dir));
  ASSIGN_OR_RETURN(const WorkFolder folder, WorkFolder::Create(settings.work_dir));
  constexpr uint64_t kTierBytes = uint64_t{2} << 30;
  ASSIGN_OR_RETURN(const auto daemon, Daemon::Start({.bin_dir = settings.bin_dir,
                                                     .work_dir = settings.work_dir,
                                                     .dram_bytes = kTierBytes,
                                                     .gpu_bytes = kTierBytes,
                                                     .nvme_bytes = 2 * kTierBytes}));
  TtftRun run(settings, *daemon, folder, vocabulary);
  for (const uint32_t tokens : settings.prompt_tokens) {
    TtftRun::Times times;
    for (int repeat = 0; repeat < settings.repeats; ++repeat) {
      ShowProgress(absl::StrCat(tokens, " tokens, prompt ", repeat + 1, " of ", settings.repeats));
      RETURN_IF_ERROR(run.Repeat(tokens, tokens * 1000 + static_cast<uint64_t>(repeat), times));
    }
    AddTimes(tokens, times, report);
  }
  report.AddNote(absl::StrCat("a new kvengine process a request, blocks of ", settings.block_tokens,
                              " tokens, random prompts, the same output ",
                              "tokens checked; nvme: evicted from GPU and DRAM"));
  return MeasurePrefill(settings, folder, settings.prompt_tokens.back(), report);
}

}  // namespace kvstore::bench
