// Time to first token of the engine on one prompt: cold, and with its KV from each tier.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/daemon.h"
#include "tools/kvbench/engine_process.h"
#include "tools/kvbench/pinned_copy.h"
#include "tools/kvbench/program.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/results.h"
#include "tools/kvbench/suites.h"
#include "tools/kvbench/ttft_ceilings.h"
#include "tools/kvbench/work_folder.h"

namespace kvstore::bench {
namespace {

constexpr absl::Duration kEngineTime = absl::Minutes(20);
constexpr absl::Duration kWriteBehindTime = absl::Minutes(1);
// On CPUs GPU and DRAM hits take 8 % of a cold prefill at most, NVMe hits 10 %: mostly the tail that
// is no whole block.
constexpr double kMemorySpeedup = 12.5, kNvmeSpeedup = 10;
constexpr double kPrefillShare = 0.6;
constexpr uint32_t kTokensToGenerate = 2;

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

// One prompt's times, or those of prompts of one length. ms.
struct Times {
  // Of hits: the first after pages were saved or evicted (they are checked, or their memory mapped
  // and registered), then again.
  Sample cold, gpu_first, gpu, dram_first, dram, nvme, gpu_restarted;
  uint64_t bytes_loaded = 0;  // of a DRAM hit
};

class TtftRun {
 public:
  TtftRun(const Settings& settings, Daemon& daemon, const WorkFolder& folder, uint64_t vocabulary)
      : settings_(settings), daemon_(daemon), folder_(folder), vocabulary_(vocabulary) {}

  // One new prompt through all sources.
  absl::Status Repeat(uint32_t tokens, uint64_t seed, Times& times) {
    RETURN_IF_ERROR(WritePrompt(tokens, seed));
    RETURN_IF_ERROR(Cold(times));
    RETURN_IF_ERROR(WaitUntilWritten());
    RETURN_IF_ERROR(Warm("gpu", times.gpu_first));
    if (settings_.is_on_cuda) RETURN_IF_ERROR(Warm("gpu", times.gpu));
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kGpu));
    ASSIGN_OR_RETURN(times.bytes_loaded, WarmBytes("dram", times.dram_first));
    if (settings_.is_on_cuda) {
      RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kGpu));
      RETURN_IF_ERROR(Warm("dram", times.dram));
    }
    RETURN_IF_ERROR(WaitUntilWritten());
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kGpu));
    RETURN_IF_ERROR(daemon_.EvictAll(client::Tier::kDram));
    RETURN_IF_ERROR(Warm("nvme", times.nvme));
    return daemon_.ClearAll();
  }

  // GPU hits of an engine process that saved none of them. Last: all prompts stay in the GPU tier.
  absl::Status Restart(std::vector<Times>& times) {
    std::vector<EngineAnswer> answers;
    std::vector<std::string> logits;
    for (size_t i = 0; i < times.size(); ++i) {
      Times unused;
      RETURN_IF_ERROR(WritePrompt(settings_.prompt_tokens[i], kRestartSeed + i));
      RETURN_IF_ERROR(Cold(unused));
      answers.push_back(cold_);
      logits.push_back(cold_logits_);
    }
    engine_ = nullptr;
    for (size_t i = 0; i < times.size(); ++i) {
      RETURN_IF_ERROR(WritePrompt(settings_.prompt_tokens[i], kRestartSeed + i));
      cold_ = answers[i];
      cold_logits_ = logits[i];
      RETURN_IF_ERROR(Warm("gpu", times[i].gpu_restarted));
    }
    return daemon_.ClearAll();
  }

 private:
  static constexpr uint64_t kRestartSeed = 77'000'000;

  absl::Status WritePrompt(uint32_t tokens, uint64_t seed) {
    std::ofstream file(Prompt(), std::ios::trunc);
    RandomWords words(seed);
    for (uint32_t i = 0; i < tokens + settings_.suffix_tokens; ++i)
      file << words.Below(vocabulary_) << '\n';
    file.close();
    return file ? absl::OkStatus() : absl::UnavailableError("cannot write the prompt");
  }
  std::string Prompt() const { return folder_ / "prompt.ids"; }

  // On CPUs a new process each time; on a device, where a start takes long, one for all.
  absl::StatusOr<EngineAnswer> Generate() {
    if (engine_ == nullptr || !settings_.is_on_cuda) {
      engine_ = nullptr;
      ASSIGN_OR_RETURN(engine_, EngineProcess::Start(settings_, daemon_.target(), folder_));
    }
    return engine_->Ask({.prompt_ids_file = Prompt(),
                         .max_tokens = kTokensToGenerate,
                         .logits_file = folder_ / "logits"});
  }

  absl::Status Cold(Times& times) {
    ASSIGN_OR_RETURN(cold_, Generate());
    if (cold_.reused_tokens != 0) return absl::InternalError("a cold run reused tokens");
    ASSIGN_OR_RETURN(cold_logits_, ReadFile(folder_ / "logits"));
    times.cold.Add(cold_.ttft_ms);
    return absl::OkStatus();
  }

  absl::Status Warm(const std::string& source, Sample& times) {
    return WarmBytes(source, times).status();
  }
  // The bytes that were moved.
  absl::StatusOr<uint64_t> WarmBytes(const std::string& source, Sample& times) {
    ASSIGN_OR_RETURN(const EngineAnswer warm, Generate());
    if (warm.output_ids != cold_.output_ids)
      return absl::DataLossError(absl::StrCat(source, ": other tokens than the cold run's"));
    ASSIGN_OR_RETURN(const std::string logits, ReadFile(folder_ / "logits"));
    if (logits != cold_logits_)
      return absl::DataLossError(absl::StrCat(source, ": other logits than the cold run's"));
    if (warm.reused_tokens == 0 || warm.ReusedFrom(source) < warm.reused_tokens) {
      return absl::InternalError(absl::StrCat(source, ": of ", warm.reused_tokens,
                                              " reused tokens only ", warm.ReusedFrom(source),
                                              " came from there"));
    }
    times.Add(warm.ttft_ms);
    return warm.bytes_loaded;
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
  const uint64_t vocabulary_;
  std::unique_ptr<EngineProcess> engine_;
  EngineAnswer cold_;
  std::string cold_logits_;
};

// Figures of one length on CPUs.
void AddCpuTimes(uint32_t tokens, const Times& times, Report& report) {
  const auto add = [&](const char* source, const Sample& sample, std::optional<double> speedup) {
    Result result =
        MakeResult(absl::StrCat("ttft/", source, "/", tokens), "ms", Better::kLower, sample);
    result.checked = {"same_tokens", "bit_identical"};
    if (speedup.has_value()) {
      result.ceiling = Ceiling{.value = times.cold.Median(),
                               .name = "the cold prefill: the ratio is the speed-up"};
      result.budget = RatioBudget("main job", *speedup);
    }
    report.Add(std::move(result));
  };
  add("cold", times.cold, std::nullopt);
  add("gpu", times.gpu_first, kMemorySpeedup);
  add("dram", times.dram_first, kMemorySpeedup);
  add("nvme", times.nvme, kNvmeSpeedup);
}

// Figures of one length on a CUDA device.
void AddCudaTimes(uint32_t tokens, uint32_t suffix_tokens, const Times& times,
                  const ModelShape& shape, const PinnedCopy& link, Report& report) {
  const auto add = [&](const char* source, const Sample& sample, std::optional<Ceiling> ceiling) {
    if (sample.size() == 0) return;
    Result result =
        MakeResult(absl::StrCat("ttft/", source, "/", tokens), "ms", Better::kLower, sample);
    result.checked = {"same_tokens", "bit_identical"};
    result.ceiling = std::move(ceiling);
    result.budget = TtftBudget(shape, link.device_name, source, tokens);
    report.Add(std::move(result));
  };
  std::optional<Ceiling> arithmetic;
  if (const std::optional<double> flops = StatedFlops(link.device_name)) {
    arithmetic = Ceiling{.value = shape.PrefillFlops(tokens + suffix_tokens) / *flops * 1e3,
                         .name = absl::StrCat("the arithmetic at ", FormatNumber(*flops / 1e12),
                                              " TFLOP/s, stated by the maker")};
  }
  const Ceiling cold = {.value = times.cold.Median(),
                        .name = "the cold prefill: the ratio is the speed-up"};
  const Ceiling wire = {
      .value = static_cast<double>(times.bytes_loaded) / link.gb_s / 1e6,
      .name = absl::StrCat("its bytes at ", FormatNumber(link.gb_s), " GB/s, one pinned copy")};
  add("cold", times.cold, arithmetic);
  add("gpu_first", times.gpu_first, cold);
  add("gpu", times.gpu, cold);
  add("gpu_restarted", times.gpu_restarted, cold);
  add("dram_first", times.dram_first, wire);
  add("dram", times.dram, wire);
  add("nvme", times.nvme, cold);
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

// What others take on an H200 with the same shapes: docs/performance.md.
constexpr char kPeersNote[] =
    "for 8B shapes on an H200 vLLM 0.26 takes, at 8K / 16K / 32K / 64K: cold 219 / 496 / 1218 / "
    "3342 "
    "ms, GPU hit 13.5 / 25.8 / 35.7 / 53.3, CPU-offload hit at its best 40 / 60 / 126 / 216; "
    "transformers with sdpa: cold 254 / 593 / 1394 / 3733, GPU hit 25 / 38 / 65 / 118";

// What a long run has found so far.
void ShowTimes(uint32_t tokens, const Times& times) {
  std::string line = absl::StrCat(tokens, " tokens:");
  const auto add = [&line](const char* name, const Sample& sample) {
    if (sample.size() > 0) absl::StrAppend(&line, " ", name, " ", FormatNumber(sample.Median()));
  };
  add("cold", times.cold);
  add("gpu_first", times.gpu_first);
  add("gpu", times.gpu);
  add("dram_first", times.dram_first);
  add("dram", times.dram);
  add("nvme", times.nvme);
  ShowProgress(absl::StrCat(line, " ms"));
}

absl::Status RunOnCuda(const Settings& settings, const ModelShape& shape, TtftRun& run,
                       const PinnedCopy& link, Report& report) {
  std::vector<Times> times(settings.prompt_tokens.size());
  for (size_t i = 0; i < times.size(); ++i) {
    const uint32_t tokens = settings.prompt_tokens[i];
    for (int repeat = 0; repeat < settings.repeats; ++repeat) {
      ShowProgress(absl::StrCat(tokens, " tokens, prompt ", repeat + 1, " of ", settings.repeats));
      RETURN_IF_ERROR(run.Repeat(tokens, tokens * 1000 + static_cast<uint64_t>(repeat), times[i]));
      ShowTimes(tokens, times[i]);
    }
  }
  ShowProgress("GPU hits of a new engine process");
  RETURN_IF_ERROR(run.Restart(times));
  for (size_t i = 0; i < times.size(); ++i)
    AddCudaTimes(settings.prompt_tokens[i], settings.suffix_tokens, times[i], shape, link, report);
  report.AddNote(absl::StrCat(
      link.device_name, "; prompts of so many random tokens and ", settings.suffix_tokens,
      " more, blocks of ", settings.block_tokens,
      " tokens, kvengine and kvstored two processes; _first: pages not checked, or memory not "
      "mapped before; nvme: evicted from GPU and DRAM"));
  report.AddNote(kPeersNote);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTtftSuite(const Settings& settings, Report& report) {
  ASSIGN_OR_RETURN(const ModelShape shape, ReadModelShape(settings.model_dir));
  ASSIGN_OR_RETURN(const WorkFolder folder, WorkFolder::Create(settings.work_dir));
  PinnedCopy link;
  if (settings.is_on_cuda) {
    ASSIGN_OR_RETURN(link, MeasurePinnedCopy(settings.device));
  }
  ASSIGN_OR_RETURN(
      const auto daemon,
      Daemon::Start({.bin_dir = settings.bin_dir,
                     .work_dir = settings.work_dir,
                     .dram_bytes = settings.tier_bytes,
                     .gpu_bytes = settings.tier_bytes,
                     .gpu_device = settings.is_on_cuda ? absl::StrCat("cuda:", settings.device)
                                                       : std::string("host"),
                     .nvme_bytes = 2 * settings.tier_bytes}));
  TtftRun run(settings, *daemon, folder, shape.vocabulary);
  if (settings.is_on_cuda) return RunOnCuda(settings, shape, run, link, report);
  for (const uint32_t tokens : settings.prompt_tokens) {
    Times times;
    for (int repeat = 0; repeat < settings.repeats; ++repeat) {
      ShowProgress(absl::StrCat(tokens, " tokens, prompt ", repeat + 1, " of ", settings.repeats));
      RETURN_IF_ERROR(run.Repeat(tokens, tokens * 1000 + static_cast<uint64_t>(repeat), times));
    }
    AddCpuTimes(tokens, times, report);
  }
  report.AddNote(absl::StrCat("a new kvengine process a request, blocks of ", settings.block_tokens,
                              " tokens, random prompts; nvme: evicted from GPU and DRAM"));
  return MeasurePrefill(settings, folder, settings.prompt_tokens.back(), report);
}

}  // namespace kvstore::bench
