#include "kernels/cpu_kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace kvstore::kernels {
namespace {

std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<const CpuKernels*> RunnableKernels() {
  std::vector<const CpuKernels*> tables;
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (const CpuKernels* table = KernelsFor(isa)) tables.push_back(table);
  }
  return tables;
}

class EachIsa : public testing::TestWithParam<const CpuKernels*> {};
INSTANTIATE_TEST_SUITE_P(Kernels, EachIsa, testing::ValuesIn(RunnableKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

// ---- GEMM

struct GemmCase {
  int64_t m, n, k;
  WeightType type;
  bool has_bias;
};

struct GemmProblem {
  GemmProblem(const CpuKernels& kernels, const GemmCase& gemm_case) : shape(gemm_case) {
    const int64_t n = shape.n, k = shape.k;
    a = RandomFloats(static_cast<size_t>(shape.m * (k + 3)), 1);
    weights = RandomFloats(static_cast<size_t>(n * k), 2);
    bias = RandomFloats(static_cast<size_t>(n), 3);
    panels.assign(PackedWeightBytes(n, k, shape.type), std::byte{0xff});  // NaN until packed
    if (shape.type == WeightType::kBf16) {
      std::vector<uint16_t> narrow(weights.size());
      kernels.narrow_bf16(weights.data(), narrow.data(), n * k);
      kernels.widen_bf16(narrow.data(), weights.data(), n * k);
      PackRows(narrow.data(), n, k, shape.type, 0, panels.data());
    } else {
      PackRows(weights.data(), n, k, shape.type, 0, panels.data());
    }
    PackPadding(n, k, shape.type, panels.data());
  }

  GemmArgs Args(float* c) const {
    return {.a = a.data(),
            .a_stride = shape.k + 3,
            .panels = panels.data(),
            .weight_type = shape.type,
            .bias = shape.has_bias ? bias.data() : nullptr,
            .c = c,
            .c_stride = shape.n,
            .n = shape.n,
            .k = shape.k};
  }

  // The contract, word for word: one chain of fused multiply-adds, k ascending, from the bias.
  std::vector<float> Chain() const {
    std::vector<float> c(static_cast<size_t>(shape.m * shape.n));
    for (int64_t i = 0; i < shape.m; ++i) {
      for (int64_t j = 0; j < shape.n; ++j) {
        float sum = shape.has_bias ? bias[j] : 0.0f;
        for (int64_t k = 0; k < shape.k; ++k) {
          sum = std::fmaf(a[i * (shape.k + 3) + k], weights[j * shape.k + k], sum);
        }
        c[i * shape.n + j] = sum;
      }
    }
    return c;
  }

  GemmCase shape;
  std::vector<float> a, weights, bias;
  std::vector<std::byte> panels;
};

TEST_P(EachIsa, GemmIsOneAscendingChainForEveryShape) {
  const GemmCase cases[] = {
      {1, 16, 1, WeightType::kF32, false},    {1, 64, 300, WeightType::kBf16, true},
      {2, 80, 64, WeightType::kBf16, false},  {5, 33, 257, WeightType::kF32, true},
      {6, 17, 256, WeightType::kBf16, false}, {7, 100, 513, WeightType::kBf16, true},
      {13, 15, 600, WeightType::kF32, false}, {25, 48, 576, WeightType::kBf16, false},
      {40, 70, 1000, WeightType::kF32, true},
  };
  for (const GemmCase& shape : cases) {
    const GemmProblem problem(*GetParam(), shape);
    std::vector<float> c(static_cast<size_t>(shape.m * shape.n),
                         std::numeric_limits<float>::quiet_NaN());
    std::vector<float> scratch(kGemmScratchFloats);
    GetParam()->gemm(problem.Args(c.data()), {0, shape.m, 0, PanelsOf(shape.n)}, scratch.data());
    EXPECT_TRUE(SameBytes(c, problem.Chain()))
        << "m " << shape.m << " n " << shape.n << " k " << shape.k;
  }
}

TEST_P(EachIsa, GemmBlocksInAnyOrderGiveTheWhole) {
  const GemmProblem problem(*GetParam(), {29, 90, 700, WeightType::kBf16, true});
  std::vector<float> c(29 * 90), scratch(kGemmScratchFloats);
  const int64_t row_cuts[] = {0, 1, 14, 29};
  const int64_t panel_cuts[] = {0, 2, 5, 6};
  for (int i = 2; i >= 0; --i) {
    for (int j = 2; j >= 0; --j) {
      GetParam()->gemm(problem.Args(c.data()),
                       {row_cuts[i], row_cuts[i + 1], panel_cuts[j], panel_cuts[j + 1]},
                       scratch.data());
    }
  }
  EXPECT_TRUE(SameBytes(c, problem.Chain()));
}

TEST(GemmPack, FusedMatricesLandBehindEachOther) {
  const std::vector<float> first = RandomFloats(20 * 8, 1), second = RandomFloats(9 * 8, 2);
  std::vector<float> both(first);
  both.insert(both.end(), second.begin(), second.end());
  std::vector<float> fused(PanelsOf(29) * 16 * 8, 7.0f), whole(fused.size(), 9.0f);
  PackRows(first.data(), 20, 8, WeightType::kF32, 0, fused.data());
  PackRows(second.data(), 9, 8, WeightType::kF32, 20, fused.data());
  PackPadding(29, 8, WeightType::kF32, fused.data());
  PackRows(both.data(), 29, 8, WeightType::kF32, 0, whole.data());
  PackPadding(29, 8, WeightType::kF32, whole.data());
  EXPECT_EQ(fused, whole);
}

// ---- attention

struct AttentionShape {
  int64_t kv_heads, group, head_dim, block_tokens, tokens;
  KvType type;
};

// A sequence of keys and values in pages whose unused part is NaN, and queries for every token.
struct AttentionProblem {
  AttentionProblem(const CpuKernels& kernels, const AttentionShape& attention_shape)
      : shape(attention_shape) {
    const int64_t row = shape.kv_heads * shape.head_dim;
    q = RandomFloats(static_cast<size_t>(shape.tokens * row * shape.group), 11);
    k = RandomFloats(static_cast<size_t>(shape.tokens * row), 12);
    v = RandomFloats(static_cast<size_t>(shape.tokens * row), 13);
    const int64_t element = shape.type == KvType::kBf16 ? 2 : 4;
    half_page_bytes = row * shape.block_tokens * element;
    const int64_t blocks = (shape.tokens + shape.block_tokens - 1) / shape.block_tokens;
    storage.assign(static_cast<size_t>(blocks), {});
    for (auto& page : storage) {
      page.assign(static_cast<size_t>(2 * half_page_bytes), std::byte{0xff});  // NaN in both types
      pages.push_back(page.data());
      const_pages.push_back(page.data());
    }
    Write(kernels, k, 0);
    Write(kernels, v, half_page_bytes);
  }

  void Write(const CpuKernels& kernels, std::vector<float>& x, int64_t offset) {
    const int64_t row = shape.kv_heads * shape.head_dim;
    kernels.store_kv({.x = x.data(),
                      .x_stride = row,
                      .kv_heads = shape.kv_heads,
                      .head_dim = shape.head_dim,
                      .pages = pages.data(),
                      .block_tokens = shape.block_tokens,
                      .offset = offset,
                      .kv_type = shape.type,
                      .first_position = 0},
                     0, shape.tokens);
    if (shape.type == KvType::kF32) return;
    std::vector<uint16_t> narrow(x.size());
    kernels.narrow_bf16(x.data(), narrow.data(), static_cast<int64_t>(x.size()));
    kernels.widen_bf16(narrow.data(), x.data(), static_cast<int64_t>(x.size()));
  }

  // Tokens [first, first + count), `step` at a time.
  std::vector<float> Run(const CpuKernels& kernels, int64_t first, int64_t count,
                         int64_t step) const {
    return Run(kernels, first, count, step, {half_page_bytes, shape.head_dim});
  }

  struct Values {
    int64_t offset;
    int64_t dim;
  };
  std::vector<float> Run(const CpuKernels& kernels, int64_t first, int64_t count, int64_t step,
                         const Values& values) const {
    const int64_t heads = shape.kv_heads * shape.group, width = heads * shape.head_dim;
    std::vector<float> out(static_cast<size_t>(count * heads * values.dim)),
        scratch(static_cast<size_t>(AttentionScratchFloats(shape.head_dim)),
                std::numeric_limits<float>::quiet_NaN());
    const AttentionArgs args{.q = q.data() + first * width,
                             .q_stride = width,
                             .out = out.data(),
                             .out_stride = heads * values.dim,
                             .pages = const_pages.data(),
                             .block_tokens = shape.block_tokens,
                             .k_offset = 0,
                             .v_offset = values.offset,
                             .kv_type = shape.type,
                             .group = shape.group,
                             .head_dim = shape.head_dim,
                             .value_dim = values.dim,
                             .scale = 0.2f,
                             .first_position = first};
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      for (int64_t token = 0; token < count; token += step) {
        kernels.attention(args, {head, token, std::min(count, token + step)}, scratch.data());
      }
    }
    return out;
  }

  // Textbook softmax in double.
  std::vector<float> Reference() const {
    const int64_t heads = shape.kv_heads * shape.group, dim = shape.head_dim;
    std::vector<float> out;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> p(static_cast<size_t>(t + 1)), sum_v(static_cast<size_t>(dim));
        double total = 0, top = -1e30;
        for (int64_t j = 0; j <= t; ++j) {
          for (int64_t d = 0; d < dim; ++d) {
            p[j] += 0.2 * q[(t * heads + h) * dim + d] *
                    k[(j * shape.kv_heads + h / shape.group) * dim + d];
          }
          top = std::max(top, p[j]);
        }
        for (int64_t j = 0; j <= t; ++j) {
          p[j] = std::exp(p[j] - top);
          total += p[j];
          for (int64_t d = 0; d < dim; ++d) {
            sum_v[d] += p[j] * v[(j * shape.kv_heads + h / shape.group) * dim + d];
          }
        }
        for (int64_t d = 0; d < dim; ++d) out.push_back(static_cast<float>(sum_v[d] / total));
      }
    }
    return out;
  }

  AttentionShape shape;
  std::vector<float> q, k, v;
  int64_t half_page_bytes = 0;
  std::vector<std::vector<std::byte>> storage;
  std::vector<std::byte*> pages;
  std::vector<const std::byte*> const_pages;
};

TEST_P(EachIsa, AttentionAgreesWithSoftmaxInDouble) {
  const AttentionShape shapes[] = {
      {1, 1, 16, 16, 1, KvType::kF32},     {2, 3, 64, 16, 150, KvType::kBf16},
      {1, 4, 128, 64, 131, KvType::kF32},  {3, 2, 80, 32, 257, KvType::kBf16},
      {2, 7, 32, 256, 140, KvType::kBf16},
  };
  for (const AttentionShape& shape : shapes) {
    const AttentionProblem problem(*GetParam(), shape);
    const std::vector<float> out =
        problem.Run(*GetParam(), 0, shape.tokens, kAttentionRowsMax / shape.group);
    // Weights and values are about 1: 1e-5 is some eighty float32 ulp, enough for chains of 128
    // rounded terms.
    EXPECT_THAT(out, testing::Pointwise(testing::FloatNear(1e-5f), problem.Reference()))
        << "tokens " << shape.tokens;
  }
}

TEST_P(EachIsa, AttentionOfARowDoesNotDependOnItsCompany) {
  const AttentionProblem problem(*GetParam(), {2, 3, 64, 16, 300, KvType::kBf16});
  const int64_t width = 2 * 3 * 64;
  const std::vector<float> whole = problem.Run(*GetParam(), 0, 300, 64);
  for (const int64_t first : {0, 1, 127, 128, 129, 255, 299}) {
    for (const int64_t step : {1, 5, 64}) {
      const std::vector<float> part = problem.Run(*GetParam(), first, 300 - first, step);
      EXPECT_EQ(std::memcmp(part.data(), whole.data() + first * width, part.size() * 4), 0)
          << "first " << first << " step " << step;
    }
  }
}

TEST_P(EachIsa, AttentionDoesNotDependOnBlockTokens) {
  const AttentionProblem small(*GetParam(), {2, 2, 32, 16, 200, KvType::kBf16});
  const AttentionProblem large(*GetParam(), {2, 2, 32, 256, 200, KvType::kBf16});
  EXPECT_TRUE(SameBytes(small.Run(*GetParam(), 0, 200, 96), large.Run(*GetParam(), 0, 200, 96)));
}

// Latent attention: one head of keys, whose front is the values.
TEST_P(EachIsa, AttentionReadsShorterValuesFromTheFrontOfTheKeys) {
  for (const KvType type : {KvType::kBf16, KvType::kF32}) {
    const AttentionProblem problem(*GetParam(), {1, 4, 576, 16, 150, type});
    const std::vector<float> whole = problem.Run(*GetParam(), 0, 150, 48, {0, 576});
    const std::vector<float> front = problem.Run(*GetParam(), 0, 150, 48, {0, 512});
    for (size_t row = 0; row < 150 * 4; ++row) {
      ASSERT_EQ(std::memcmp(&front[row * 512], &whole[row * 576], 512 * sizeof(float)), 0) << row;
    }
  }
}

// ---- rows

TEST_P(EachIsa, Exp2IsAccurateAndExactAtTheEnds) {
  std::vector<float> x, expected;
  for (float value = -125.9f; value < 127.0f; value += 0.0371f) {
    x.push_back(value);
    expected.push_back(static_cast<float>(std::exp2(static_cast<double>(value))));
  }
  std::vector<float> out(x.size());
  GetParam()->exp2(x.data(), out.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(out[i] / expected[i], 1.0f, 2.5e-7f) << x[i];
  }
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> ends = {0.0f, -infinity, -200.0f, infinity, 300.0f, NAN, 1.0f};
  std::vector<float> at_ends(ends.size());
  GetParam()->exp2(ends.data(), at_ends.data(), static_cast<int64_t>(ends.size()));
  EXPECT_THAT(at_ends,
              testing::ElementsAre(1.0f, 0.0f, 0.0f, infinity, infinity, testing::IsNan(), 2.0f));
}

TEST_P(EachIsa, Bf16RoundsToNearestEvenAndKeepsNan) {
  const std::vector<float> x = {1.0f,          1.00390625f, 1.01171875f, -2.5f,
                                3.3895314e38f, INFINITY,    NAN};
  std::vector<uint16_t> bits(x.size());
  GetParam()->narrow_bf16(x.data(), bits.data(), static_cast<int64_t>(x.size()));
  EXPECT_THAT(bits, testing::ElementsAre(0x3f80, 0x3f80, 0x3f82, 0xc020, 0x7f7f, 0x7f80,
                                         testing::AnyOf(0x7fc0, 0xffc0)));
}

TEST_P(EachIsa, NormAddsTheResidualFirst) {
  constexpr int64_t kRows = 3, kN = 37;
  std::vector<float> x = RandomFloats(kRows * kN, 1), y = RandomFloats(kRows * kN, 2);
  const std::vector<float> weight = RandomFloats(kN, 3);
  std::vector<float> expected(x.size()), out(x.size());
  for (int64_t row = 0; row < kRows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < kN; ++i) squares += std::pow(x[row * kN + i] + y[row * kN + i], 2.0);
    for (int64_t i = 0; i < kN; ++i) {
      expected[row * kN + i] = static_cast<float>((x[row * kN + i] + y[row * kN + i]) /
                                                  std::sqrt(squares / kN + 1e-5) * weight[i]);
    }
  }
  GetParam()->norm({.x = x.data(),
                    .y = y.data(),
                    .weight = weight.data(),
                    .out = out.data(),
                    .x_stride = kN,
                    .y_stride = kN,
                    .out_stride = kN,
                    .n = kN,
                    .epsilon = 1e-5f},
                   0, kRows);
  EXPECT_THAT(out, testing::Pointwise(testing::FloatNear(2e-6f), expected));
}

TEST_P(EachIsa, RopeTurnsEachPairByItsAngle) {
  constexpr int64_t kHalf = 12;
  std::vector<float> x = RandomFloats(2 * 2 * kHalf, 1);
  const std::vector<float> before = x;
  std::vector<float> cosine(kHalf), sine(kHalf);
  for (int64_t i = 0; i < kHalf; ++i) {
    cosine[i] = std::cos(0.3f * static_cast<float>(i));
    sine[i] = std::sin(0.3f * static_cast<float>(i));
  }
  GetParam()->rope({.x = x.data(),
                    .x_stride = 4 * kHalf,
                    .heads = 2,
                    .head_dim = 2 * kHalf,
                    .cos = cosine.data(),
                    .sin = sine.data()},
                   0, 1);
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t i = 0; i < kHalf; ++i) {
      const int64_t at = head * 2 * kHalf + i;
      EXPECT_NEAR(x[at], before[at] * cosine[i] - before[at + kHalf] * sine[i], 1e-6f);
      EXPECT_NEAR(x[at + kHalf], before[at + kHalf] * cosine[i] + before[at] * sine[i], 1e-6f);
    }
  }
}

TEST_P(EachIsa, SwigluIsSiluOfGateTimesUp) {
  constexpr int64_t kN = 21;
  const std::vector<float> gate_up = RandomFloats(2 * kN, 4, 5.0f);
  std::vector<float> out(kN);
  GetParam()->swiglu({.gate_up = gate_up.data(),
                      .gate_up_stride = 2 * kN,
                      .out = out.data(),
                      .out_stride = kN,
                      .n = kN},
                     0, 1);
  for (int64_t i = 0; i < kN; ++i) {
    const double g = gate_up[i];
    EXPECT_NEAR(out[i], g / (1 + std::exp(-g)) * gate_up[kN + i], 1e-5);
  }
}

// ---- equality across instruction sets

TEST_P(EachIsa, GivesTheBitsOfTheScalarVariant) {
  const CpuKernels& scalar = *KernelsFor(CpuIsa::kScalar);
  const AttentionShape shape{2, 3, 48, 16, 170, KvType::kBf16};
  EXPECT_TRUE(SameBytes(AttentionProblem(*GetParam(), shape).Run(*GetParam(), 0, 170, 64),
                        AttentionProblem(scalar, shape).Run(scalar, 0, 170, 64)));
  constexpr int64_t kN = 1003;
  const std::vector<float> input = RandomFloats(2 * kN, 5, 3.0f);
  const auto run = [&input](const CpuKernels& kernels) {
    std::vector<float> x(input), out(4 * kN);
    kernels.exp2(x.data(), out.data(), kN);
    kernels.swiglu({x.data(), 2 * kN, out.data() + kN, kN, kN}, 0, 1);
    kernels.norm({.x = x.data(),
                  .y = x.data() + kN,
                  .weight = input.data(),
                  .out = out.data() + 2 * kN,
                  .x_stride = kN,
                  .y_stride = kN,
                  .out_stride = kN,
                  .n = kN,
                  .epsilon = 1e-6f},
                 0, 1);
    kernels.rope({.x = x.data(),
                  .x_stride = kN,
                  .heads = 4,
                  .head_dim = 200,
                  .cos = input.data(),
                  .sin = input.data() + 100,
                  .norm_weight = input.data() + 300,
                  .norm_epsilon = 1e-6f},
                 0, 1);
    std::copy(x.begin(), x.begin() + kN, out.begin() + 3 * kN);
    return out;
  };
  EXPECT_TRUE(SameBytes(run(*GetParam()), run(scalar)));
}

TEST(CpuKernels, BestIsRunnable) {
  EXPECT_EQ(KernelsFor(BestKernels().isa), &BestKernels());
  std::printf("instruction sets tested here: ");
  for (const CpuKernels* table : RunnableKernels()) std::printf("%s ", table->name);
  std::printf("\n");
}

}  // namespace
}  // namespace kvstore::kernels
