// engine_cuda_bench MODEL_DIR --tokens 8192 16384 ...: times of the CUDA back-end alone, medians of
// repeats, host clock around passes that return when the device is done.
//
//   cold     a prompt of so many random tokens, to logits on the host
//   suffix   64 tokens behind a prefix of so many that lies in device memory
//   decode   one token behind the 2,048th
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "engine_adapter/llama_cuda/cuda_backend.h"
#include "engine_adapter/paging/page_table.h"
#include "engine_adapter/paging/prefix_cache.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

struct Options {
  std::string model_dir;
  std::vector<int64_t> tokens = {8192};
  int repeats = 5;
  int64_t pass_tokens_max = 8192;
};

// One sequence of random tokens on private pages.
class Bench {
 public:
  Bench(Backend& backend, int64_t tokens_max, PageTable table)
      : backend_(backend),
        pages_(backend.page_memory()),
        table_(std::move(table)),
        logits_(static_cast<size_t>(backend.config().vocab_size)) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < tokens_max; ++i) {
      tokens_.push_back(random() % static_cast<uint32_t>(backend.config().vocab_size));
    }
  }

  absl::Status Compute(int64_t begin, int64_t end) {
    RETURN_IF_ERROR(table_.Extend(pages_, end));
    while (begin < end) {
      const int64_t pass_end = std::min(end, begin + backend_.pass_tokens_max());
      ForwardPass pass{.token_ids = std::span(tokens_).subspan(
                           static_cast<size_t>(begin), static_cast<size_t>(pass_end - begin)),
                       .first_position = begin,
                       .read_pages = table_.read_pages(),
                       .write_pages = table_.write_pages()};
      if (pass_end == end) pass.logits = logits_;
      RETURN_IF_ERROR(backend_.Forward(pass));
      begin = pass_end;
    }
    return absl::OkStatus();
  }

  // Prints median, least and most of the repeats.
  absl::Status Time(const char* name, int64_t begin, int64_t end, int repeats) {
    std::vector<double> milliseconds;
    for (int repeat = -1; repeat < repeats; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      RETURN_IF_ERROR(Compute(begin, end));
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - start;
      if (repeat >= 0) milliseconds.push_back(took.count());
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    std::printf("%-7s %6lld + %5lld tokens  %9.2f ms (%.2f to %.2f, %d runs)\n", name,
                static_cast<long long>(begin), static_cast<long long>(end - begin),
                milliseconds[milliseconds.size() / 2], milliseconds.front(), milliseconds.back(),
                repeats);
    std::fflush(stdout);
    return absl::OkStatus();
  }

 private:
  Backend& backend_;
  PrivatePages pages_;
  PageTable table_;
  std::vector<uint32_t> tokens_;
  std::vector<float> logits_;
};

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(const ModelWeights weights, ModelWeights::Open(options.model_dir, config));
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Backend> backend,
      CreateCudaBackend(config, weights, {.pass_tokens_max = options.pass_tokens_max}));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const int64_t tokens_max =
      std::max<int64_t>(*std::max_element(options.tokens.begin(), options.tokens.end()) + 64, 2049);
  ASSIGN_OR_RETURN(PageTable table,
                   PageTable::Create(backend->kv_layout(), tokens_max, backend->page_memory()));
  std::printf("%s, %s, started in %.1f s\n", std::string(backend->device_name()).c_str(),
              std::string(backend->numerics_class()).c_str(), took.count());
  Bench bench(*backend, tokens_max, std::move(table));
  for (const int64_t tokens : options.tokens) {
    RETURN_IF_ERROR(bench.Time("cold", 0, tokens, options.repeats));
    RETURN_IF_ERROR(bench.Time("suffix", tokens, tokens + 64, 4 * options.repeats));
    RETURN_IF_ERROR(bench.Time("decode", tokens, tokens + 1, 4 * options.repeats));
  }
  return bench.Time("decode", 2048, 2049, 20 * options.repeats);
}

}  // namespace
}  // namespace kvstore::engine

int main(int argc, char** argv) {
  kvstore::engine::Options options;
  CLI::App app{"Times of the CUDA back-end", "engine_cuda_bench"};
  app.add_option("model", options.model_dir, "Hugging Face folder")->required();
  app.add_option("--tokens", options.tokens, "Lengths of prompts")->capture_default_str();
  app.add_option("--repeats", options.repeats)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--pass-tokens", options.pass_tokens_max, "Rows of a pass")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvstore::engine::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "engine_cuda_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
