// Decode rate of the CPU engine by batch.
//
//   engine_decode_bench --model DIR [--context 256] [--steps 32] [--threads 2]
//
// Batches of 1, 2, 4, 8 and 16 sequences, one behind the other, three rounds; the best of each, and
// CPU time, which other programs do not take from us.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine_adapter/llama/sequence.h"
#include "engine_adapter/llama_cpu/cpu_backend.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

struct Options {
  std::string model_dir;
  int64_t context = 256;
  int64_t steps = 32;
  int threads = 2;
};

struct Rate {
  double tokens_per_second = 0;
  double cpu_ms_per_token = 1e9;
};

double CpuSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Member {
  std::unique_ptr<PrivatePages> pages;
  std::unique_ptr<Sequence> sequence;
};

absl::StatusOr<std::vector<Member>> Prefill(Backend& backend, const Options& options,
                                            int64_t batch) {
  std::mt19937 random(1);
  std::vector<Member> members(static_cast<size_t>(batch));
  for (Member& member : members) {
    GenerateRequest request{.max_tokens = options.steps + 1};
    for (int64_t i = 0; i < options.context; ++i) {
      request.prompt_ids.push_back(random() % static_cast<uint32_t>(backend.config().vocab_size));
    }
    member.pages = std::make_unique<PrivatePages>(backend.page_memory());
    ASSIGN_OR_RETURN(member.sequence,
                     Sequence::Create(backend, *member.pages, std::move(request), nullptr));
    while (!member.sequence->HasLogits()) {
      ASSIGN_OR_RETURN(const ForwardPass pass,
                       member.sequence->NextPass(backend.pass_tokens_max()));
      RETURN_IF_ERROR(member.sequence->EndPass(backend.Forward(pass)));
    }
    member.sequence->ChooseToken();
  }
  return members;
}

absl::StatusOr<Rate> Decode(Backend& backend, const Options& options, int64_t batch) {
  ASSIGN_OR_RETURN(const std::vector<Member> members, Prefill(backend, options, batch));
  std::vector<ForwardPass> passes(members.size());
  const double cpu_before = CpuSeconds();
  const Timeline::Time begin = Timeline::Now();
  for (int64_t step = 0; step < options.steps; ++step) {
    for (size_t i = 0; i < members.size(); ++i) {
      ASSIGN_OR_RETURN(passes[i], members[i].sequence->NextPass(1));
    }
    const absl::Status status = backend.ForwardBatch(passes);
    for (const Member& member : members) {
      RETURN_IF_ERROR(member.sequence->EndPass(status));
      member.sequence->ChooseToken();
    }
  }
  const auto tokens = static_cast<double>(options.steps * batch);
  const double seconds = std::chrono::duration<double>(Timeline::Now() - begin).count();
  return Rate{.tokens_per_second = tokens / seconds,
              .cpu_ms_per_token = (CpuSeconds() - cpu_before) * 1e3 / tokens};
}

absl::StatusOr<nlohmann::json> RunBench(const Options& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(const ModelWeights weights, ModelWeights::Open(options.model_dir, config));
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                   CreateCpuBackend(config, weights, {.num_threads = options.threads}));
  std::map<int64_t, Rate> best;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t batch : {1, 2, 4, 8, 16}) {
      ASSIGN_OR_RETURN(const Rate rate, Decode(*backend, options, batch));
      Rate& kept = best[batch];
      kept.tokens_per_second = std::max(kept.tokens_per_second, rate.tokens_per_second);
      kept.cpu_ms_per_token = std::min(kept.cpu_ms_per_token, rate.cpu_ms_per_token);
    }
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& [batch, rate] : best) {
    rows.push_back({{"batch", batch},
                    {"tokens_per_second", rate.tokens_per_second},
                    {"times_batch_1", rate.tokens_per_second / best[1].tokens_per_second},
                    {"cpu_ms_per_token", rate.cpu_ms_per_token}});
  }
  return nlohmann::json{{"context", options.context},
                        {"threads", options.threads},
                        {"instruction_set", std::string(backend->device_name())},
                        {"decode", std::move(rows)}};
}

bool ParseOptions(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--model") {
      options.model_dir = argv[i + 1];
    } else if (flag == "--context") {
      options.context = std::atoll(argv[i + 1]);
    } else if (flag == "--steps") {
      options.steps = std::atoll(argv[i + 1]);
    } else if (flag == "--threads") {
      options.threads = std::atoi(argv[i + 1]);
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && !options.model_dir.empty() && options.context > 0 && options.steps > 0 &&
         options.threads > 0;
}

}  // namespace
}  // namespace kvstore::engine

int main(int argc, char** argv) {
  kvstore::engine::Options options;
  if (!kvstore::engine::ParseOptions(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: engine_decode_bench --model DIR [--context 256] [--steps 32] "
                 "[--threads 2]\n");
    return 2;
  }
  const auto report = kvstore::engine::RunBench(options);
  if (!report.ok()) {
    std::fprintf(stderr, "engine_decode_bench: %s\n", report.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", report->dump(2).c_str());
  return 0;
}
