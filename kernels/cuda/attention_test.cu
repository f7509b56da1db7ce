// Attention on the device: values against float64, bits against itself cut in other ways. Pages lie
// in random order in their pool; everything that no token wrote is NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/test_device.cuh"

namespace kvstore::kernels::cuda {
namespace {

constexpr int64_t kLayers = 2;  // the second one is used

struct Model {
  int head_dim = 128;
  int kv_heads = 2;
  int group = 4;
  int block_tokens = 256;
  __host__ __device__ int64_t row() const { return int64_t{kv_heads} * group * head_dim; }
  __host__ __device__ int64_t half_slice_bytes() const {
    return int64_t{kv_heads} * block_tokens * head_dim * 2;
  }
  __host__ __device__ int64_t page_bytes() const { return kLayers * 2 * half_slice_bytes(); }
  __host__ __device__ int64_t k_offset() const { return 2 * half_slice_bytes(); }
  __host__ __device__ int64_t v_offset() const { return 3 * half_slice_bytes(); }
};

// Writes K (or V) of positions [0, tokens) into the pages of one sequence.
__global__ void FillPagesKernel(Model m, std::byte* const* pages, int64_t offset, int64_t tokens,
                                const Bf16* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= tokens * m.kv_heads * m.head_dim) return;
  const int64_t token = i / (m.kv_heads * m.head_dim);
  const int64_t head = i / m.head_dim % m.kv_heads;
  auto* to = reinterpret_cast<Bf16*>(pages[token / m.block_tokens] + offset);
  to[(head * m.block_tokens + token % m.block_tokens) * m.head_dim + i % m.head_dim] = values[i];
}

// A warp computes one query head of one token in float64.
__global__ void ReferenceKernel(Model m, const Bf16* q, const std::byte* const* pages,
                                int64_t first_position, int64_t num_tokens, double scale,
                                double* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int64_t heads = int64_t{m.kv_heads} * m.group;
  if (at >= num_tokens * heads) return;
  const int lane = threadIdx.x % 32;
  const int64_t kv_head = at % heads / m.group;
  const int values = m.head_dim / 32;
  double sum = 0, maximum = -INFINITY, o[4] = {};
  for (int64_t key = 0; key <= first_position + at / heads; ++key) {
    const std::byte* page = pages[key / m.block_tokens];
    const int64_t row = (kv_head * m.block_tokens + key % m.block_tokens) * m.head_dim;
    const auto* k = reinterpret_cast<const Bf16*>(page + m.k_offset()) + row;
    const auto* v = reinterpret_cast<const Bf16*>(page + m.v_offset()) + row;
    double score = 0;
    for (int i = 0; i < values; ++i) {
      score += static_cast<double>(__bfloat162float(q[at * m.head_dim + lane + 32 * i])) *
               static_cast<double>(__bfloat162float(k[lane + 32 * i]));
    }
    for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(~0u, score, step);
    score *= scale;
    const double top = fmax(maximum, score);
    const double shrink = exp(maximum - top), weight = exp(score - top);
    for (int i = 0; i < values; ++i) {
      o[i] = o[i] * shrink + weight * static_cast<double>(__bfloat162float(v[lane + 32 * i]));
    }
    sum = sum * shrink + weight;
    maximum = top;
  }
  for (int i = 0; i < values; ++i) out[at * m.head_dim + lane + 32 * i] = o[i] / sum;
}

// One sequence of `tokens` tokens: queries of all of them, pages that hold its keys and values.
struct Sequence {
  Bf16* q;                        // [tokens, heads, head_dim]
  std::vector<std::byte*> pages;  // host's copy
};

class AttentionTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    if (capability_ != 90) GTEST_SKIP() << "attention needs compute capability 9.0";
  }

  // Pages of all sequences of a test, in random order.
  void MakePool(const Model& model, int64_t num_pages) {
    pool_bytes_ = static_cast<size_t>(num_pages * model.page_bytes());
    base_ = Device<std::byte>(pool_bytes_);
    ASSERT_EQ(MakeKvPool(base_, pool_bytes_, model.head_dim, model.block_tokens, &pool_),
              cudaSuccess);
    free_.resize(static_cast<size_t>(num_pages));
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), std::mt19937(7));
  }

  Sequence MakeSequence(const Model& model, int64_t tokens, uint32_t seed) {
    Sequence sequence{Random(tokens * model.row(), seed, 1.5f), {}};
    for (int64_t block = 0; block * model.block_tokens < tokens; ++block) {
      sequence.pages.push_back(base_ + free_.back() * model.page_bytes());
      free_.pop_back();
    }
    std::byte** pages = Upload(sequence.pages);
    const int64_t count = tokens * model.kv_heads * model.head_dim;
    for (const bool is_value : {false, true}) {
      const Bf16* values = Random(count, seed + 1 + (is_value ? 1 : 0));
      FillPagesKernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream_>>>(
          model, pages, is_value ? model.v_offset() : model.k_offset(), tokens, values);
    }
    return sequence;
  }

  // Output of tokens [first, first + num_tokens) of each sequence, computed in one launch. Pages
  // behind the last token are out of the table.
  std::vector<Bf16> Run(const Model& model, const std::vector<Sequence>& sequences,
                        const std::vector<int64_t>& first, int64_t num_tokens,
                        AttentionSplit split) {
    const int64_t row = model.row();
    int64_t keys_max = 0, pages_stride = 0;
    for (const int64_t position : first) keys_max = std::max(keys_max, position + num_tokens);
    pages_stride = (keys_max + model.block_tokens - 1) / model.block_tokens;
    std::vector<const std::byte*> pages;
    std::vector<int32_t> positions;
    Bf16* q = Device<Bf16>(static_cast<size_t>(row * num_tokens) * sequences.size());
    for (size_t s = 0; s < sequences.size(); ++s) {
      positions.push_back(static_cast<int32_t>(first[s]));
      const int64_t used = (first[s] + num_tokens + model.block_tokens - 1) / model.block_tokens;
      for (int64_t i = 0; i < pages_stride; ++i) {
        pages.push_back(i < used ? sequences[s].pages[static_cast<size_t>(i)] : nullptr);
      }
      EXPECT_EQ(cudaMemcpyAsync(
                    q + static_cast<int64_t>(s) * num_tokens * row, sequences[s].q + first[s] * row,
                    static_cast<size_t>(num_tokens * row) * 2, cudaMemcpyDeviceToDevice, stream_),
                cudaSuccess);
    }
    const size_t outputs = static_cast<size_t>(row * num_tokens) * sequences.size();
    AttentionArgs args{.q = q,
                       .q_stride = row,
                       .out = Device<Bf16>(outputs),
                       .out_stride = row,
                       .pages = Upload(pages),
                       .pages_stride = pages_stride,
                       .first_positions = Upload(positions),
                       .num_sequences = static_cast<int32_t>(sequences.size()),
                       .num_tokens = static_cast<int32_t>(num_tokens),
                       .keys_max = static_cast<int32_t>(keys_max),
                       .kv_heads = model.kv_heads,
                       .group = model.group,
                       .head_dim = model.head_dim,
                       .block_tokens = model.block_tokens,
                       .k_offset = model.k_offset(),
                       .v_offset = model.v_offset(),
                       .scale = Scale(model)};
    const size_t bytes = AttentionWorkspaceBytes(args, multiprocessors_, split);
    if (bytes > 0) args.workspace = Device<float>(bytes / sizeof(float));
    EXPECT_EQ(LaunchAttention(args, pool_, multiprocessors_, split, stream_), cudaSuccess);
    return Download(args.out, outputs);
  }

  static float Scale(const Model& model) {
    return 1.0f / std::sqrt(static_cast<float>(model.head_dim));
  }

  std::vector<double> Reference(const Model& model, const Sequence& sequence, int64_t first,
                                int64_t num_tokens) {
    double* out = Device<double>(static_cast<size_t>(num_tokens * model.row()));
    const int64_t rows = num_tokens * model.kv_heads * model.group;
    ReferenceKernel<<<static_cast<unsigned>((rows + 3) / 4), 128, 0, stream_>>>(
        model, sequence.q + first * model.row(), Upload(sequence.pages), first, num_tokens,
        static_cast<double>(Scale(model)), out);
    return Download(out, static_cast<size_t>(num_tokens * model.row()));
  }

  std::byte* base_ = nullptr;
  size_t pool_bytes_ = 0;
  KvPool pool_;
  std::vector<int64_t> free_;
};

// |out - reference| / |reference|; NaN where anything is.
double RelativeError(const std::vector<Bf16>& out, const std::vector<double>& reference) {
  double error = 0, size = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double difference = static_cast<double>(__bfloat162float(out[i])) - reference[i];
    error += difference * difference;
    size += reference[i] * reference[i];
  }
  return std::sqrt(error / size);
}

bool SameBits(const std::vector<Bf16>& a, const Bf16* b, size_t count) {
  return a.size() == count && std::memcmp(a.data(), b, count * sizeof(Bf16)) == 0;
}

struct Case {
  Model model;
  int64_t first;
  int64_t tokens;
};

TEST_F(AttentionTest, MatchesFloat64OverATableOfShapes) {
  const std::vector<Case> cases = {
      {{}, 0, 1},
      {{}, 0, 100},
      {{}, 0, 256},
      {{}, 0, 1500},
      {{}, 1000, 300},
      {{}, 2047, 1},
      {{}, 4096, 64},
      {{}, 3333, 777},
      {{.kv_heads = 8, .block_tokens = 64}, 0, 2100},
      {{.kv_heads = 1, .group = 1, .block_tokens = 128}, 129, 513},
      {{.kv_heads = 4, .group = 7, .block_tokens = 192}, 500, 900},
      {{.head_dim = 64}, 0, 1},
      {{.head_dim = 64, .kv_heads = 3, .group = 3, .block_tokens = 64}, 0, 1300},
      {{.head_dim = 64, .kv_heads = 2, .group = 7}, 2000, 70},
      {{.head_dim = 64, .kv_heads = 8, .group = 4}, 1023, 1026},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << "head_dim " << c.model.head_dim << ", heads " << c.model.kv_heads << " x "
                 << c.model.group << ", block " << c.model.block_tokens << ", tokens " << c.first
                 << " + " << c.tokens);
    MakePool(c.model, (c.first + c.tokens) / c.model.block_tokens + 3);
    const Sequence sequence = MakeSequence(c.model, c.first + c.tokens, 11);
    const std::vector<double> reference = Reference(c.model, sequence, c.first, c.tokens);
    for (const AttentionSplit split : {AttentionSplit::kNever, AttentionSplit::kSegments}) {
      const std::vector<Bf16> out = Run(c.model, {sequence}, {c.first}, c.tokens, split);
      EXPECT_LT(RelativeError(out, reference), 4e-3) << "split " << static_cast<int>(split);
    }
  }
}

// The promise of the engine rests on this one.
TEST_F(AttentionTest, ARowHasTheSameBitsHoweverThePassIsCut) {
  for (const Model& model :
       {Model{}, Model{.head_dim = 64, .kv_heads = 2, .group = 3, .block_tokens = 64}}) {
    constexpr int64_t kTokens = 3000;
    MakePool(model, kTokens / model.block_tokens + 2);
    const Sequence sequence = MakeSequence(model, kTokens, 3);
    const std::vector<Bf16> whole = Run(model, {sequence}, {0}, kTokens, AttentionSplit::kNever);
    for (const int64_t chunk : {1, 7, 16, 64, 128, 200, 1000, 1024, 2048, 3000}) {
      const AttentionSplit splits[] = {AttentionSplit::kNever, AttentionSplit::kSegments,
                                       AttentionSplit::kAuto};
      // Small chunks: some of them, each boundary among them.
      const int64_t step = chunk < 64 ? 61 : chunk;
      for (int64_t first = 0; first < kTokens; first += step) {
        const int64_t tokens = std::min(chunk, kTokens - first);
        for (const AttentionSplit split : splits) {
          const std::vector<Bf16> part = Run(model, {sequence}, {first}, tokens, split);
          ASSERT_TRUE(SameBits(part, whole.data() + first * model.row(),
                               static_cast<size_t>(tokens * model.row())))
              << "head_dim " << model.head_dim << ", tokens " << first << " + " << tokens
              << ", split " << static_cast<int>(split);
        }
      }
    }
  }
}

TEST_F(AttentionTest, ASequenceHasTheSameBitsInEveryBatch) {
  const Model model{.kv_heads = 4};
  const std::vector<int64_t> lengths = {1, 64, 1024, 1025, 2500, 700, 4096, 129};
  MakePool(model, 60);
  std::vector<Sequence> sequences;
  std::vector<int64_t> last;
  for (const int64_t length : lengths) {
    sequences.push_back(MakeSequence(model, length, static_cast<uint32_t>(20 + length)));
    last.push_back(length - 1);
  }
  const std::vector<Bf16> batch = Run(model, sequences, last, 1, AttentionSplit::kAuto);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::vector<Bf16> alone = Run(model, {sequences[s]}, {last[s]}, 1, AttentionSplit::kAuto);
    EXPECT_TRUE(SameBits(alone, batch.data() + static_cast<int64_t>(s) * model.row(), alone.size()))
        << s;
    EXPECT_LT(RelativeError(alone, Reference(model, sequences[s], last[s], 1)), 4e-3) << s;
  }
}

TEST_F(AttentionTest, RunsAreRepeatable) {
  const Model model{.kv_heads = 8};
  MakePool(model, 40);
  const Sequence sequence = MakeSequence(model, 8192, 5);
  const std::vector<Bf16> first = Run(model, {sequence}, {0}, 8192, AttentionSplit::kNever);
  EXPECT_LT(RelativeError(first, Reference(model, sequence, 0, 8192)), 4e-3);
  for (int repeat = 0; repeat < 5; ++repeat) {
    const std::vector<Bf16> again = Run(model, {sequence}, {0}, 8192, AttentionSplit::kNever);
    ASSERT_TRUE(SameBits(again, first.data(), first.size()));
  }
}

TEST_F(AttentionTest, RefusesShapesThatItDoesNotCompute) {
  const AttentionArgs good{.num_tokens = 4,
                           .keys_max = 4,
                           .kv_heads = 1,
                           .group = 1,
                           .head_dim = 128,
                           .block_tokens = 256,
                           .scale = 1.0f};
  std::vector<AttentionArgs> bad(8, good);
  bad[0].head_dim = 96;
  bad[1].block_tokens = 32;
  bad[2].keys_max = 3;
  bad[3].scale = 0.0f;
  bad[4].k_offset = 128;
  bad[5].num_tokens = 0;
  bad[6].num_sequences = 2;  // not split, or no workspace
  bad[7].q_stride = 4;
  for (const AttentionArgs& args : bad) {
    for (const AttentionSplit split : {AttentionSplit::kNever, AttentionSplit::kSegments}) {
      EXPECT_EQ(LaunchAttention(args, KvPool(), 132, split, stream_), cudaErrorInvalidValue);
    }
  }
  KvPool pool;
  EXPECT_EQ(MakeKvPool(nullptr, 1 << 20, 80, 256, &pool), cudaErrorInvalidValue);
  EXPECT_EQ(MakeKvPool(nullptr, 1 << 20, 128, 100, &pool), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvstore::kernels::cuda
