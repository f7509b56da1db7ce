// Choosing the next token from logits.
//
// Deterministic: the same logits, options and generator state give the same token on every machine
// with the same C library. Ties go to the smaller token id.
#pragma once

#include <cstdint>

namespace kvstore::kernels {

struct SamplingOptions {
  float temperature = 0.0f;  // 0: greedy, and the rest is ignored
  int64_t top_k = 0;         // keep the k most likely tokens; 0: all
  float top_p = 1.0f;        // then the fewest whose probability reaches top_p; in (0, 1]
};

// SplitMix64: 64 bits of state, the whole of which is the seed.
class SampleGenerator {
 public:
  explicit SampleGenerator(uint64_t seed) : state_(seed) {}
  double NextUnit();  // uniform in [0, 1), 53 bits

 private:
  uint64_t state_;
};

// The index of the largest logit; NaNs are passed over. Returns 0 when all are NaN. Requires n > 0.
int64_t ArgMax(const float* logits, int64_t n);

// One candidate of SampleToken's scratch.
struct SampleCandidate {
  float logit;
  int32_t token;
};

// Draws a token. `scratch` has room for n candidates. Requires 0 < n < 2^31.
int64_t SampleToken(const float* logits, int64_t n, const SamplingOptions& options,
                    SampleGenerator& generator, SampleCandidate* scratch);

}  // namespace kvstore::kernels
