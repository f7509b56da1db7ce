#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>

namespace kvstore::kernels {
namespace {

bool Before(const SampleCandidate& a, const SampleCandidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Unnormalised probability relative to the best candidate.
double Weight(const SampleCandidate& c, float best, float temperature) {
  return std::exp((static_cast<double>(c.logit) - best) / temperature);
}

double TotalWeight(const SampleCandidate* begin, const SampleCandidate* end, float best,
                   float temperature) {
  double total = 0;
  for (const SampleCandidate* c = begin; c != end; ++c) total += Weight(*c, best, temperature);
  return total;
}

// The end of the shortest run of sorted candidates that reaches top_p of their weight.
const SampleCandidate* CutTopP(const SampleCandidate* begin, const SampleCandidate* end,
                               const SamplingOptions& options) {
  const double wanted = options.top_p * TotalWeight(begin, end, begin->logit, options.temperature);
  double reached = 0;
  for (const SampleCandidate* c = begin; c != end; ++c) {
    reached += Weight(*c, begin->logit, options.temperature);
    if (reached >= wanted) return c + 1;
  }
  return end;
}

}  // namespace

double SampleGenerator::NextUnit() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

int64_t ArgMax(const float* logits, int64_t n) {
  int64_t best = 0;
  float best_logit = -INFINITY;
  bool found = false;
  for (int64_t i = 0; i < n; ++i) {
    if (logits[i] > best_logit || (!found && !std::isnan(logits[i]))) {
      best = i;
      best_logit = logits[i];
      found = true;
    }
  }
  return best;
}

int64_t SampleToken(const float* logits, int64_t n, const SamplingOptions& options,
                    SampleGenerator& generator, SampleCandidate* scratch) {
  if (options.temperature <= 0.0f) return ArgMax(logits, n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isnan(logits[i])) scratch[count++] = {logits[i], static_cast<int32_t>(i)};
  }
  if (count == 0) return 0;
  if (options.top_k > 0 && options.top_k < count) {
    std::nth_element(scratch, scratch + options.top_k, scratch + count, Before);
    count = options.top_k;
  }
  std::sort(scratch, scratch + count, Before);
  const SampleCandidate* end = scratch + count;
  if (options.top_p < 1.0f) end = CutTopP(scratch, end, options);
  const float best = scratch->logit;
  double left = generator.NextUnit() * TotalWeight(scratch, end, best, options.temperature);
  for (const SampleCandidate* c = scratch; c != end; ++c) {
    left -= Weight(*c, best, options.temperature);
    if (left < 0) return c->token;
  }
  return (end - 1)->token;
}

}  // namespace kvstore::kernels
