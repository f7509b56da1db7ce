// Prefill rate of the CPU engine against the machine's own peak GEMM rate, in one run.
//
//   engine_prefill_bench --model DIR [--tokens N] [--repeats N] [--threads N]
//
// The peak is OpenBLAS sgemm of 2048^3 with the same number of threads, five calls before each
// repeat: other work on the machine hits both alike. `ratio` is best prefill over best peak,
// `median_ratio` the same of medians. FLOPs counted: ForwardFlops (cpu_backend.h).
#include <cblas.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine_adapter/llama/generate.h"
#include "engine_adapter/llama_cpu/cpu_backend.h"

namespace kvstore::engine {
namespace {

constexpr int kPeakSize = 2048;

struct Options {
  std::string model_dir;
  int64_t tokens = 4096;
  int repeats = 3;
  int threads = 2;
};

double Seconds(Timeline::Time begin) {
  return std::chrono::duration<double>(Timeline::Now() - begin).count();
}

// GFLOP/s of one sgemm.
double MeasurePeak(const std::vector<float>& a, const std::vector<float>& b,
                   std::vector<float>& c) {
  constexpr int kN = kPeakSize;
  const Timeline::Time begin = Timeline::Now();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kN, kN, kN, 1.0f, a.data(), kN, b.data(), kN,
              0.0f, c.data(), kN);
  return 2.0 * kN * kN * kN / Seconds(begin) / 1e9;
}

// CPU time of all threads of this process: unlike wall time it does not count what other programs
// take from us.
double CpuSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::StatusOr<nlohmann::json> RunBench(const Options& options) {
  auto config = ReadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  auto weights = ModelWeights::Open(options.model_dir, *config);
  if (!weights.ok()) return weights.status();
  auto backend = CreateCpuBackend(*config, *weights, {.num_threads = options.threads});
  if (!backend.ok()) return backend.status();

  std::mt19937 generator(1);
  GenerateRequest request;
  for (int64_t i = 0; i < options.tokens; ++i) {
    request.prompt_ids.push_back(generator() % static_cast<uint32_t>(config->vocab_size));
  }
  std::vector<float> a(kPeakSize * kPeakSize), b(a.size()), c(a.size());
  for (float& value : a) value = static_cast<float>(generator() % 1000) / 1000.0f;
  for (float& value : b) value = static_cast<float>(generator() % 1000) / 1000.0f;
  openblas_set_num_threads(options.threads);
  MeasurePeak(a, b, c);

  const double flops = ForwardFlops(*config, 0, options.tokens);
  std::vector<double> seconds, peaks, cpu_seconds;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (int i = 0; i < 5; ++i) peaks.push_back(MeasurePeak(a, b, c));
    PrivatePages cache((*backend)->page_memory());
    const double cpu_before = CpuSeconds();
    request.arrival = Timeline::Now();
    auto result = Generate(**backend, cache, request, {});
    if (!result.ok()) return result.status();
    seconds.push_back(result->ttft.count());
    cpu_seconds.push_back(CpuSeconds() - cpu_before);
  }
  const double best_seconds = *std::min_element(seconds.begin(), seconds.end());
  const double best_peak = *std::max_element(peaks.begin(), peaks.end());
  return nlohmann::json{{"tokens", options.tokens},
                        {"threads", options.threads},
                        {"repeats", options.repeats},
                        {"instruction_set", std::string((*backend)->device_name())},
                        {"gflop", flops / 1e9},
                        {"seconds", best_seconds},
                        {"gflops", flops / best_seconds / 1e9},
                        {"peak_gflops", best_peak},
                        {"ratio", flops / best_seconds / 1e9 / best_peak},
                        {"cpu_seconds", *std::min_element(cpu_seconds.begin(), cpu_seconds.end())},
                        {"median_seconds", Median(seconds)},
                        {"median_peak_gflops", Median(peaks)},
                        {"median_ratio", flops / Median(seconds) / 1e9 / Median(peaks)}};
}

bool ParseOptions(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--model") {
      options.model_dir = argv[i + 1];
    } else if (flag == "--tokens") {
      options.tokens = std::atoll(argv[i + 1]);
    } else if (flag == "--repeats") {
      options.repeats = std::atoi(argv[i + 1]);
    } else if (flag == "--threads") {
      options.threads = std::atoi(argv[i + 1]);
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && !options.model_dir.empty() && options.tokens > 0 && options.repeats > 0 &&
         options.threads > 0;
}

}  // namespace
}  // namespace kvstore::engine

int main(int argc, char** argv) {
  kvstore::engine::Options options;
  if (!kvstore::engine::ParseOptions(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: engine_prefill_bench --model DIR [--tokens 4096] [--repeats 3] "
                 "[--threads 2]\n");
    return 2;
  }
  const auto report = kvstore::engine::RunBench(options);
  if (!report.ok()) {
    std::fprintf(stderr, "engine_prefill_bench: %s\n", report.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", report->dump(2).c_str());
  return 0;
}
