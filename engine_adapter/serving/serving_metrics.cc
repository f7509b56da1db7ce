#include "engine_adapter/serving/serving_metrics.h"

#include <utility>

#include "kvstore/base/metrics_page.h"

namespace kvstore::engine {
namespace {

constexpr std::string_view kRefusals[] = {"invalid", "queue_full", "draining"};
constexpr std::string_view kEnds[] = {"stop", "length", "cancelled", "failed"};

void Single(MetricsPage& page, std::string_view name, MetricType type, std::string_view help,
            uint64_t value) {
  page.Family(name, type, help);
  page.Sample({}, value);
}

void Times(MetricsPage& page, std::string_view name, std::string_view help,
           const LatencyHistogram& times) {
  page.Family(name, MetricType::kHistogram, help);
  page.Histogram({}, times.snapshot());
}

void AddState(MetricsPage& page, const SchedulerState& state) {
  page.Family("kvstore_serving_requests", MetricType::kGauge, "Requests by what they wait for.");
  const auto sample = [&page](std::string_view name, int64_t value) {
    page.Sample({{"state", name}}, static_cast<uint64_t>(value));
  };
  sample("waiting", state.waiting);
  sample("loading", state.loading);
  sample("running", state.running);
  sample("closing", state.closing);
  Single(page, "kvstore_serving_kv_tokens", MetricType::kGauge,
         "Tokens whose keys and values the requests hold room for.",
         static_cast<uint64_t>(state.kv_tokens));
  Single(page, "kvstore_serving_is_draining", MetricType::kGauge, "1 while no request is taken.",
         state.is_draining ? 1 : 0);
}

}  // namespace

void ServingMetrics::CountEnd(const AnswerEnd& end) {
  ++ended_[static_cast<size_t>(end.reason)];
  prompt_tokens_ += static_cast<uint64_t>(end.prompt_tokens);
  reused_tokens_ += static_cast<uint64_t>(end.reused_tokens);
  output_tokens_ += static_cast<uint64_t>(end.output_tokens);
  for (size_t source = 0; source < kNumBlockSources; ++source) {
    reused_blocks_[source] += static_cast<uint64_t>(end.load.blocks_by_source[source]);
  }
  absl::MutexLock lock(&mutex_);
  for (const auto& [reason, blocks] : end.load.failures) {
    load_failures_[reason] += static_cast<uint64_t>(blocks);
  }
}

void ServingMetrics::CountStep(int64_t sequences, int64_t tokens, absl::Duration took) {
  ++steps_;
  step_sequences_ += static_cast<uint64_t>(sequences);
  step_tokens_ += static_cast<uint64_t>(tokens);
  step_time_.Record(took);
}

std::string ServingMetrics::Page(const SchedulerState& state) const {
  constexpr MetricType kCounter = MetricType::kCounter;
  MetricsPage page;
  AddState(page, state);
  page.Family("kvstore_serving_ended_total", kCounter, "Requests that ended, by reason.");
  for (size_t i = 0; i < std::size(kEnds); ++i) page.Sample({{"reason", kEnds[i]}}, ended_[i]);
  page.Family("kvstore_serving_refused_total", kCounter, "Requests that were refused, by reason.");
  for (size_t i = 0; i < std::size(kRefusals); ++i) {
    page.Sample({{"reason", kRefusals[i]}}, refused_[i]);
  }
  Single(page, "kvstore_serving_prompt_tokens_total", kCounter, "Tokens of prompts.",
         prompt_tokens_);
  Single(page, "kvstore_serving_reused_tokens_total", kCounter,
         "Tokens of prompts that were not computed.", reused_tokens_);
  Single(page, "kvstore_serving_output_tokens_total", kCounter, "Tokens chosen.", output_tokens_);
  page.Family("kvstore_serving_reused_blocks_total", kCounter, "Blocks reused, by where they lay.");
  for (size_t i = 0; i < kNumBlockSources; ++i) {
    page.Sample({{"tier", BlockSourceName(static_cast<BlockSource>(i))}}, reused_blocks_[i]);
  }
  page.Family("kvstore_serving_load_failures_total", kCounter,
              "Blocks that were computed because the store did not give them, by reason.");
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [reason, blocks] : load_failures_) page.Sample({{"reason", reason}}, blocks);
  }
  Single(page, "kvstore_serving_steps_total", kCounter, "Batches computed.", steps_);
  Single(page, "kvstore_serving_step_sequences_total", kCounter,
         "Sequences in them: divided by the steps, the mean batch.", step_sequences_);
  Single(page, "kvstore_serving_step_tokens_total", kCounter, "Tokens computed in them.",
         step_tokens_);
  Single(page, "kvstore_serving_failed_steps_total", kCounter, "Steps that the device failed.",
         failed_steps_);
  Times(page, "kvstore_serving_step_seconds", "Time of a step.", step_time_);
  Times(page, "kvstore_serving_queue_seconds", "Arrival until a place is free.", queue_time);
  Times(page, "kvstore_serving_load_seconds", "Match and load of a prefix.", load_time);
  Times(page, "kvstore_serving_ttft_seconds", "Arrival to first token.", ttft);
  Times(page, "kvstore_serving_tpot_seconds", "Each token after the first.", tpot);
  Single(page, "kvstore_serving_connections", MetricType::kGauge, "HTTP connections now.",
         static_cast<uint64_t>(connections.load()));
  Single(page, "kvstore_serving_evicted_connections_total", kCounter,
         "Idle HTTP connections closed to make room.", evicted_connections);
  return std::move(page).Take();
}

}  // namespace kvstore::engine
