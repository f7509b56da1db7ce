// XXH3-64, long form (xxHash specification, "XXH3 algorithm, large inputs"), a warp a slice.
//
//   block  = 16 stripes of 64 bytes, 8 lanes of 8 bytes each       data[16][8]
//   chunk  = 16 bytes = two lanes of a stripe; thread t of the warp has the chunks t and t + 32:
//            stripes t / 4 and t / 4 + 8, lanes 2 * (t % 4) and the next
//   secret = 24 words of 8 bytes; lane i of stripe s is keyed by word s + i
#include "kernels/cuda/page_checksum.h"

#include <algorithm>

namespace kvstore::kernels {
namespace {

constexpr int kWarpThreads = 32;
constexpr int kBlockThreads = 256;
constexpr int kWarps = kBlockThreads / kWarpThreads;
constexpr uint32_t kStripeBytes = 64;
constexpr uint32_t kBlockBytes = 1024;
constexpr int kSecretWords = 24;
constexpr int kScrambleWord = 16;       // secret bytes 128 to 191
constexpr int kLastStripeSecret = 121;  // in bytes, as the next
constexpr int kMergeSecret = 11;
constexpr int kBlocksAhead = 4;  // blocks whose loads are in flight at a time
constexpr unsigned kAll = 0xFFFFFFFFU;

constexpr uint64_t kPrime32x1 = 0x9E3779B1U, kPrime32x2 = 0x85EBCA77U, kPrime32x3 = 0xC2B2AE3DU;
constexpr uint64_t kPrime64x1 = 0x9E3779B185EBCA87U, kPrime64x2 = 0xC2B2AE3D27D4EB4FU;
constexpr uint64_t kPrime64x3 = 0x165667B19E3779F9U, kPrime64x4 = 0x85EBCA77C2B2AE63U;
constexpr uint64_t kPrime64x5 = 0x27D4EB2F165667C5U, kPrimeAvalanche = 0x165667919E3779F9U;

// The default secret of XXH3 as little-endian words.
__constant__ const uint64_t kSecret[kSecretWords] = {
    0xbe4ba423396cfeb8U, 0x1cad21f72c81017cU, 0xdb979083e96dd4deU, 0x1f67b3b7a4a44072U,
    0x78e5c0cc4ee679cbU, 0x2172ffcc7dd05a82U, 0x8e2443f7744608b8U, 0x4c263a81e69035e0U,
    0xcb00c391bb52283cU, 0xa32e531b8b65d088U, 0x4ef90da297486471U, 0xd8acdea946ef1938U,
    0x3f349ce33f76faa8U, 0x1d4f0bc7c7bbdcf9U, 0x3159b4cd4be0518aU, 0x647378d9c97e9fc8U,
    0xc3ebd33483acc5eaU, 0xeb6313faffa081c5U, 0x49daf0b751dd0d17U, 0x9e68d429265516d3U,
    0xfca1477d58be162bU, 0xce31d07ad1b8f88fU, 0x280416958f3acb45U, 0x7e404bbbcafbd7afU};
__constant__ const uint64_t kInitial[8] = {kPrime32x3, kPrime64x1, kPrime64x2, kPrime64x3,
                                           kPrime64x4, kPrime32x2, kPrime64x5, kPrime32x1};

struct Pair {  // two neighbouring lanes
  uint64_t low, high;
};

// The secret of one seed: word i of it.
__device__ uint64_t SecretWord(uint64_t seed, int i) {
  return i % 2 == 0 ? kSecret[i] + seed : kSecret[i] - seed;
}

// Eight bytes of the secret from byte `at` on.
__device__ uint64_t SecretAt(uint64_t seed, int at) {
  const int shift = 8 * (at % 8);
  const uint64_t low = SecretWord(seed, at / 8);
  return shift == 0 ? low : low >> shift | SecretWord(seed, at / 8 + 1) << (64 - shift);
}

template <bool kIsAligned>
__device__ Pair Load(const unsigned char* at) {
  if constexpr (kIsAligned) {
    const ulonglong2 value = __ldcs(reinterpret_cast<const ulonglong2*>(at));
    return {value.x, value.y};
  } else {
    Pair value = {0, 0};
    for (int i = 0; i < 8; ++i) {
      value.low |= uint64_t{at[i]} << (8 * i);
      value.high |= uint64_t{at[8 + i]} << (8 * i);
    }
    return value;
  }
}

__device__ void Accumulate(Pair& sum, Pair data, Pair key) {
  const uint64_t low = data.low ^ key.low, high = data.high ^ key.high;
  sum.low += data.high + (low & 0xFFFFFFFFU) * (low >> 32);
  sum.high += data.low + (high & 0xFFFFFFFFU) * (high >> 32);
}

// Over the eight threads that hold the same two lanes.
__device__ Pair SumOverStripes(Pair sum) {
  for (int distance = 4; distance < kWarpThreads; distance *= 2) {
    sum.low += __shfl_xor_sync(kAll, sum.low, distance);
    sum.high += __shfl_xor_sync(kAll, sum.high, distance);
  }
  return sum;
}

__device__ uint64_t Scramble(uint64_t accumulator, uint64_t secret) {
  return (accumulator ^ accumulator >> 47 ^ secret) * kPrime32x1;
}

__device__ uint64_t Fold128(uint64_t a, uint64_t b) { return (a * b) ^ __umul64hi(a, b); }

// Every thread returns the checksum.
template <bool kIsAligned>
__device__ uint64_t WarpChecksum(const unsigned char* data, uint32_t bytes, uint64_t seed) {
  const int thread = threadIdx.x % kWarpThreads;
  const uint32_t stripe = thread / 4;
  const int lane = 2 * (thread % 4);
  const Pair keys[2] = {
      {SecretWord(seed, stripe + lane), SecretWord(seed, stripe + lane + 1)},
      {SecretWord(seed, stripe + 8 + lane), SecretWord(seed, stripe + 8 + lane + 1)}};
  const Pair scramble = {SecretWord(seed, kScrambleWord + lane),
                         SecretWord(seed, kScrambleWord + lane + 1)};
  Pair accumulators = {kInitial[lane], kInitial[lane + 1]};  // the same in all eight threads

  const uint32_t num_blocks = (bytes - 1) / kBlockBytes;
  const unsigned char* at = data + 16 * thread;
  const auto add_block = [&](const Pair(&chunks)[2]) {
    Pair sum = {0, 0};
    Accumulate(sum, chunks[0], keys[0]);
    Accumulate(sum, chunks[1], keys[1]);
    sum = SumOverStripes(sum);
    accumulators.low = Scramble(accumulators.low + sum.low, scramble.low);
    accumulators.high = Scramble(accumulators.high + sum.high, scramble.high);
  };
  uint32_t block = 0;
  for (; block + kBlocksAhead <= num_blocks; block += kBlocksAhead) {
    Pair chunks[kBlocksAhead][2];
#pragma unroll
    for (int i = 0; i < kBlocksAhead; ++i) {
      chunks[i][0] = Load<kIsAligned>(at + i * kBlockBytes);
      chunks[i][1] = Load<kIsAligned>(at + i * kBlockBytes + kBlockBytes / 2);
    }
#pragma unroll
    for (int i = 0; i < kBlocksAhead; ++i) add_block(chunks[i]);
    at += kBlocksAhead * kBlockBytes;
  }
  for (; block < num_blocks; ++block, at += kBlockBytes) {
    const Pair chunks[2] = {Load<kIsAligned>(at), Load<kIsAligned>(at + kBlockBytes / 2)};
    add_block(chunks);
  }

  // The rest of the last block, then the last 64 bytes as a stripe of their own: no scramble.
  const uint32_t num_stripes = (bytes - 1 - num_blocks * kBlockBytes) / kStripeBytes;
  Pair sum = {0, 0};
  if (stripe < num_stripes) Accumulate(sum, Load<kIsAligned>(at), keys[0]);
  if (stripe + 8 < num_stripes) Accumulate(sum, Load<kIsAligned>(at + kBlockBytes / 2), keys[1]);
  if (stripe == 0) {
    const Pair key = {SecretAt(seed, kLastStripeSecret + 8 * lane),
                      SecretAt(seed, kLastStripeSecret + 8 * lane + 8)};
    Accumulate(sum, Load<false>(data + bytes - kStripeBytes + 8 * lane), key);
  }
  sum = SumOverStripes(sum);
  accumulators.low += sum.low;
  accumulators.high += sum.high;

  uint64_t result = Fold128(accumulators.low ^ SecretAt(seed, kMergeSecret + 8 * lane),
                            accumulators.high ^ SecretAt(seed, kMergeSecret + 8 * lane + 8));
  result += __shfl_xor_sync(kAll, result, 1);
  result += __shfl_xor_sync(kAll, result, 2);
  result += bytes * kPrime64x1;
  result ^= result >> 37;
  result *= kPrimeAvalanche;
  return result ^ result >> 32;
}

__global__ void __launch_bounds__(kBlockThreads)
    ChecksumKernel(const CudaChecksumTask* tasks, uint64_t* checksums, uint32_t num_tasks,
                   uint32_t slice_bytes) {
  const uint32_t warp = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
  for (uint32_t i = warp; i < num_tasks; i += gridDim.x * kWarps) {
    const CudaChecksumTask task = tasks[i];
    const unsigned char* data = static_cast<const unsigned char*>(task.data);
    const bool is_aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    const uint64_t checksum = is_aligned ? WarpChecksum<true>(data, slice_bytes, task.seed)
                                         : WarpChecksum<false>(data, slice_bytes, task.seed);
    if (threadIdx.x % kWarpThreads == 0) checksums[i] = checksum;
  }
}

}  // namespace

cudaError_t LaunchCudaChecksums(const CudaChecksumTask* tasks, uint64_t* checksums,
                                uint32_t num_tasks, uint32_t slice_bytes, uint32_t blocks_max,
                                cudaStream_t stream) {
  if (slice_bytes < kCudaChecksumBytesMin || blocks_max == 0) return cudaErrorInvalidValue;
  if (num_tasks == 0) return cudaSuccess;
  const uint32_t blocks = std::min((num_tasks - 1) / kWarps + 1, blocks_max);
  ChecksumKernel<<<blocks, kBlockThreads, 0, stream>>>(tasks, checksums, num_tasks, slice_bytes);
  return cudaGetLastError();
}

}  // namespace kvstore::kernels
