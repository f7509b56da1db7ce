// Row-local device kernels against their CPU twins, and rows against themselves in other company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "kernels/cpu_kernels.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/test_device.cuh"
#include "kernels/sampling.h"

namespace kvstore::kernels::cuda {
namespace {

std::vector<float> Widened(const std::vector<Bf16>& values) {
  std::vector<float> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = __bfloat162float(values[i]);
  return out;
}

// One rounding to bf16, and a little for another order of the same sums.
void ExpectClose(const std::vector<Bf16>& out, const std::vector<float>& expected) {
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const float tolerance = std::abs(expected[i]) * 0x1.2p-8f + 1e-6f;
    ASSERT_NEAR(__bfloat162float(out[i]), expected[i], tolerance) << i;  // NaN fails
  }
}

bool Same(const std::vector<Bf16>& a, const std::vector<Bf16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Bf16)) == 0;
}

const CpuKernels& Twin() { return BestKernels(); }

using RowsTest = DeviceTest;

TEST_F(RowsTest, EmbedCopiesTheRowsOfTheTokens) {
  const int64_t n = 264;
  Bf16* table = Random(50 * n, 1);
  const std::vector<uint32_t> tokens = {49, 0, 7, 7};
  Bf16* out = Device<Bf16>(4 * n);
  ASSERT_EQ(LaunchEmbed({.table = table, .tokens = Upload(tokens), .out = out, .rows = 4, .n = n},
                        stream_),
            cudaSuccess);
  const std::vector<Bf16> all = Download(table, 50 * n), got = Download(out, 4 * n);
  for (size_t row = 0; row < 4; ++row) {
    EXPECT_EQ(std::memcmp(got.data() + row * n, all.data() + tokens[row] * n, n * 2), 0) << row;
  }
}

TEST_F(RowsTest, NormMatchesItsTwinForEveryWidth) {
  for (const int64_t n : {8, 48, 256, 896, 2048, 2056, 4096, 5120, 8192, 16384}) {
    for (const bool has_residual : {false, true}) {
      const int64_t rows = 5;
      Bf16* x = Random(rows * n, 1, 3.0f);
      Bf16* y = Random(rows * n, 2);
      Bf16* weight = Random(n, 3);
      Bf16* out = Device<Bf16>(rows * n);
      std::vector<float> cpu_x = Widened(Download(x, rows * n));
      const std::vector<float> cpu_y = Widened(Download(y, rows * n));
      const std::vector<float> cpu_weight = Widened(Download(weight, n));
      NormArgs args{.x = x,
                    .y = has_residual ? y : nullptr,
                    .weight = weight,
                    .out = out,
                    .rows = rows,
                    .n = n,
                    .epsilon = 1e-5f};
      ASSERT_EQ(LaunchNorm(args, stream_), cudaSuccess);
      const std::vector<Bf16> got = Download(out, rows * n), sum = Download(x, rows * n);
      // The device rounds the sum before it goes on; so does the comparison.
      if (has_residual) {
        for (size_t i = 0; i < cpu_x.size(); ++i) cpu_x[i] += cpu_y[i];
        ExpectClose(sum, cpu_x);
        cpu_x = Widened(sum);
      }
      std::vector<float> expected(cpu_x.size());
      Twin().norm({.x = cpu_x.data(),
                   .weight = cpu_weight.data(),
                   .out = expected.data(),
                   .x_stride = n,
                   .out_stride = n,
                   .n = n,
                   .epsilon = 1e-5f},
                  0, rows);
      ExpectClose(got, expected);
      // A row alone.
      args = {.x = x + 3 * n, .weight = weight, .out = out, .rows = 1, .n = n, .epsilon = 1e-5f};
      ASSERT_EQ(LaunchNorm(args, stream_), cudaSuccess);
      EXPECT_TRUE(Same(Download(out, n), {got.begin() + 3 * n, got.begin() + 4 * n})) << n;
    }
  }
}

struct RopeCase {
  int heads;
  int kv_heads;
  int head_dim;
  int block_tokens;
  bool has_norm;
};

class RopeTest : public DeviceTest {
 protected:
  static constexpr int kTokens = 70, kSequences = 2, kPositions = 9000;

  void Prepare(const RopeCase& c) {
    const int half = c.head_dim / 2;
    frequencies_.clear();
    for (int i = 0; i < half; ++i) {
      frequencies_.push_back(1.0f /
                             std::pow(500000.0f, static_cast<float>(i) / static_cast<float>(half)));
    }
    table_ = Device<float2>(static_cast<size_t>(kPositions) * half);
    ASSERT_EQ(LaunchRopeTable({.inverse_frequencies = Upload(frequencies_),
                               .table = table_,
                               .positions = kPositions,
                               .half = half},
                              stream_),
              cudaSuccess);
    positions_.clear();
    for (int s = 0; s < kSequences; ++s) {
      for (int t = 0; t < kTokens; ++t) positions_.push_back((s == 0 ? 8500 : 100) + t);
    }
    page_bytes_ = size_t{2} * c.kv_heads * c.block_tokens * c.head_dim * 2;
    pages_stride_ = kPositions / c.block_tokens + 1;
  }

  std::vector<float> frequencies_;
  float2* table_ = nullptr;
  std::vector<int32_t> positions_;
  size_t page_bytes_ = 0;
  int64_t pages_stride_ = 0;
};

TEST_F(RopeTest, TableHoldsTheRoundedCosines) {
  Prepare({1, 1, 128, 256, false});
  const std::vector<float2> table = Download(table_, size_t{kPositions} * 64);
  for (int position = 0; position < kPositions; position += 37) {
    for (int i = 0; i < 64; ++i) {
      const auto angle = static_cast<double>(static_cast<float>(position) * frequencies_[i]);
      const float2 got = table[static_cast<size_t>(position) * 64 + i];
      ASSERT_NEAR(got.x, static_cast<float>(std::cos(angle)), 6e-8f) << position << " " << i;
      ASSERT_NEAR(got.y, static_cast<float>(std::sin(angle)), 6e-8f) << position << " " << i;
    }
  }
}

TEST_F(RopeTest, MatchesItsTwinsAndWritesNothingElse) {
  for (const RopeCase& c : {RopeCase{8, 2, 128, 256, false},
                            {6, 2, 64, 64, true},
                            {7, 1, 128, 64, true},
                            {3, 3, 64, 128, false}}) {
    Prepare(c);
    const int width = (c.heads + 2 * c.kv_heads) * c.head_dim, rows = kTokens * kSequences;
    Bf16* qkv = Random(int64_t{rows} * width, 5);
    Bf16* q_norm = Random(c.head_dim, 6);
    Bf16* k_norm = Random(c.head_dim, 7);
    std::vector<float> cpu = Widened(Download(qkv, static_cast<size_t>(rows) * width));
    // Only the pages of the positions in use exist.
    std::vector<std::byte*> pages(static_cast<size_t>(pages_stride_ * kSequences), nullptr);
    for (int row = 0; row < rows; ++row) {
      auto& page = pages[static_cast<size_t>(row / kTokens * pages_stride_ +
                                             positions_[row] / c.block_tokens)];
      if (page == nullptr) page = Device<std::byte>(page_bytes_);
    }
    const int64_t v_offset = static_cast<int64_t>(page_bytes_ / 2);
    ASSERT_EQ(LaunchRopeAndStore({.qkv = qkv,
                                  .rows = rows,
                                  .num_tokens = kTokens,
                                  .heads = c.heads,
                                  .kv_heads = c.kv_heads,
                                  .head_dim = c.head_dim,
                                  .table = table_,
                                  .positions = Upload(positions_),
                                  .q_norm = c.has_norm ? q_norm : nullptr,
                                  .k_norm = c.has_norm ? k_norm : nullptr,
                                  .norm_epsilon = 1e-6f,
                                  .pages = Upload(pages),
                                  .pages_stride = pages_stride_,
                                  .block_tokens = c.block_tokens,
                                  .k_offset = 0,
                                  .v_offset = v_offset},
                                 stream_),
              cudaSuccess);
    const std::vector<Bf16> got = Download(qkv, static_cast<size_t>(rows) * width);

    std::vector<float> cosine, sine;
    for (const int32_t position : positions_) {
      for (const float frequency : frequencies_) {
        const auto angle = static_cast<double>(static_cast<float>(position) * frequency);
        cosine.push_back(static_cast<float>(std::cos(angle)));
        sine.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    const std::vector<float> norms[2] = {Widened(Download(q_norm, c.head_dim)),
                                         Widened(Download(k_norm, c.head_dim))};
    RopeArgs twin{.x = cpu.data(),
                  .x_stride = width,
                  .heads = c.heads,
                  .head_dim = c.head_dim,
                  .cos = cosine.data(),
                  .sin = sine.data(),
                  .norm_weight = c.has_norm ? norms[0].data() : nullptr,
                  .norm_epsilon = 1e-6f};
    Twin().rope(twin, 0, rows);
    twin.x += c.heads * c.head_dim;
    twin.heads = c.kv_heads;
    twin.norm_weight = c.has_norm ? norms[1].data() : nullptr;
    Twin().rope(twin, 0, rows);

    std::vector<Bf16> q, kv;
    std::vector<float> expected_q, expected_kv;
    std::map<std::byte*, std::vector<Bf16>> contents;
    for (std::byte* page : pages) {
      if (page != nullptr)
        contents[page] = Download(reinterpret_cast<Bf16*>(page), page_bytes_ / 2);
    }
    size_t written = 0, finite = 0;
    for (int row = 0; row < rows; ++row) {
      const size_t at = static_cast<size_t>(row) * width, q_width = size_t(c.heads) * c.head_dim;
      q.insert(q.end(), got.begin() + at, got.begin() + at + q_width);
      expected_q.insert(expected_q.end(), cpu.begin() + at, cpu.begin() + at + q_width);
      const std::byte* page = pages[static_cast<size_t>(row / kTokens * pages_stride_ +
                                                        positions_[row] / c.block_tokens)];
      const std::vector<Bf16>& content = contents.at(const_cast<std::byte*>(page));
      for (int part = 0; part < 2 * c.kv_heads; ++part) {  // heads of k, then of v
        const size_t from =
            (size_t(part) * c.block_tokens + positions_[row] % c.block_tokens) * c.head_dim;
        kv.insert(kv.end(), content.begin() + from, content.begin() + from + c.head_dim);
        const size_t source = at + q_width + size_t(part) * c.head_dim;
        expected_kv.insert(expected_kv.end(), cpu.begin() + source,
                           cpu.begin() + source + c.head_dim);
        written += c.head_dim;
      }
    }
    ExpectClose(q, expected_q);
    ExpectClose(kv, expected_kv);
    for (const auto& [page, content] : contents) {
      for (const Bf16 value : content) finite += std::isnan(__bfloat162float(value)) ? 0 : 1;
    }
    EXPECT_EQ(finite, written);
  }
}

TEST_F(RowsTest, SwigluMatchesItsTwin) {
  for (const int64_t n : {8, 80, 1536, 14336}) {
    const int64_t rows = 3;
    Bf16* gate_up = Random(rows * 2 * n, 9, 4.0f);
    Bf16* out = Device<Bf16>(rows * n);
    ASSERT_EQ(LaunchSwiglu({.gate_up = gate_up, .out = out, .rows = rows, .n = n}, stream_),
              cudaSuccess);
    const std::vector<float> in = Widened(Download(gate_up, rows * 2 * n));
    std::vector<float> expected(rows * n);
    Twin().swiglu({.gate_up = in.data(),
                   .gate_up_stride = 2 * n,
                   .out = expected.data(),
                   .out_stride = n,
                   .n = n},
                  0, rows);
    ExpectClose(Download(out, rows * n), expected);
  }
}

TEST_F(RowsTest, ArgMaxIsTheTwins) {
  std::mt19937 random(1);
  for (const int64_t n : {1, 31, 1000, 1024, 50257, 128256}) {
    const int64_t rows = 6;
    std::vector<float> logits(static_cast<size_t>(rows * n));
    for (float& logit : logits) logit = static_cast<float>(random() % 1000);  // with ties
    logits[0] = NAN;
    for (int64_t i = 0; i < n; ++i) {
      logits[2 * n + i] = NAN;
      logits[3 * n + i] = -INFINITY;
      logits[4 * n + i] = i % 3 == 0 ? NAN : -INFINITY;
    }
    uint32_t* tokens = Device<uint32_t>(rows);
    ASSERT_EQ(
        LaunchArgMax({.logits = Upload(logits), .tokens = tokens, .rows = rows, .n = n}, stream_),
        cudaSuccess);
    const std::vector<uint32_t> got = Download(tokens, rows);
    for (int64_t row = 0; row < rows; ++row) {
      EXPECT_EQ(got[row], ArgMax(logits.data() + row * n, n)) << n << " " << row;
    }
  }
}

TEST_F(RowsTest, RefuseShapesThatTheyDoNotCompute) {
  EXPECT_EQ(LaunchEmbed({.rows = 1, .n = 12}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchNorm({.rows = 1, .n = kNormWidthMax + 8}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchNorm({.rows = 0, .n = 8}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchSwiglu({.rows = 1, .n = 4}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchArgMax({.rows = 1, .n = 0}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchRopeTable({.positions = 1, .half = 0}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchRopeAndStore({.rows = 1,
                                .num_tokens = 1,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 96,
                                .block_tokens = 64},
                               stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchRopeAndStore({.rows = 3,
                                .num_tokens = 2,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 64,
                                .block_tokens = 64},
                               stream_),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvstore::kernels::cuda
