#include "kernels/page_checksum.h"

#include <algorithm>
#include <cstring>

#define XXH_STATIC_LINKING_ONLY  // XXH3_state_t on the stack, XXH3_generateSecret_fromSeed
#include <xxhash.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvstore::kernels {
namespace {

// Below this XXH3 is another function; libxxhash computes it.
constexpr size_t kLongBytesMin = 241;
constexpr size_t kPortableChunkBytes =
    8192;  // stays in the first-level cache between copy and checksum

uint64_t PortableCopyChecksum(std::byte* dst, const std::byte* src, size_t bytes, uint64_t seed) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, seed);
  for (size_t at = 0; at < bytes; at += kPortableChunkBytes) {
    const size_t chunk = std::min(kPortableChunkBytes, bytes - at);
    std::memcpy(dst + at, src + at, chunk);
    XXH3_64bits_update(&state, dst + at, chunk);
  }
  return XXH3_64bits_digest(&state);
}

#if defined(__x86_64__)

// The XXH3 long form (xxHash specification, "XXH3 algorithm, large inputs"): stripes of 64 bytes go
// into eight 64-bit accumulators, each stripe with the secret 8 bytes further on; after a block of
// 16 stripes the accumulators are scrambled; the last 64 bytes count as a stripe of their own.
constexpr size_t kStripeBytes = 64;
constexpr size_t kSecretStep = 8;
constexpr size_t kStripesInBlock = (XXH3_SECRET_DEFAULT_SIZE - kStripeBytes) / kSecretStep;
constexpr size_t kBlockBytes = kStripesInBlock * kStripeBytes;
constexpr size_t kLastStripeSecret = XXH3_SECRET_DEFAULT_SIZE - kStripeBytes - 7;
constexpr size_t kMergeSecret = 11;
constexpr uint64_t kPrime32x1 = 0x9E3779B1U, kPrime32x2 = 0x85EBCA77U, kPrime32x3 = 0xC2B2AE3DU;
constexpr uint64_t kPrime64x1 = 0x9E3779B185EBCA87U, kPrime64x2 = 0xC2B2AE3D27D4EB4FU;
constexpr uint64_t kPrime64x3 = 0x165667B19E3779F9U, kPrime64x4 = 0x85EBCA77C2B2AE63U;
constexpr uint64_t kPrime64x5 = 0x27D4EB2F165667C5U, kPrimeAvalanche = 0x165667919E3779F9U;

// The hardware prefetcher stops at page borders. Measured on a 2-core EPYC VM, 1 GiB set, fused
// copy of 2 MiB pieces against memcpy: none 1.0-1.4x, 512 1.4-1.7x, 1024 1.5-1.8x, 2048 1.3-1.4x,
// 4096 1.6x.
constexpr size_t kPrefetchBytes = 1024;

uint64_t Fold128(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t Load64(const std::byte* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

uint64_t MergeAccumulators(const uint64_t* accumulators, const std::byte* secret, size_t bytes) {
  uint64_t result = bytes * kPrime64x1;
  for (int i = 0; i < 4; ++i) {
    const std::byte* key = secret + kMergeSecret + 16 * i;
    result += Fold128(accumulators[2 * i] ^ Load64(key), accumulators[2 * i + 1] ^ Load64(key + 8));
  }
  result ^= result >> 37;
  result *= kPrimeAvalanche;
  return result ^ (result >> 32);
}

#define KVSTORE_AVX2 __attribute__((target("avx2")))

enum class Store { kNone, kCached, kStreaming };

struct Avx2Accumulators {
  __m256i low, high;  // [4] of uint64_t each
};

KVSTORE_AVX2 inline __m256i LoadVector(const std::byte* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

template <Store kStore>
KVSTORE_AVX2 inline void StoreVector(std::byte* at, __m256i value) {
  if constexpr (kStore == Store::kCached) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
  } else if constexpr (kStore == Store::kStreaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(at), value);
  }
}

KVSTORE_AVX2 inline __m256i Accumulate(__m256i accumulator, __m256i data, __m256i secret) {
  const __m256i key = _mm256_xor_si256(data, secret);
  const __m256i product = _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32));
  const __m256i swapped = _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2));
  return _mm256_add_epi64(_mm256_add_epi64(accumulator, swapped), product);
}

KVSTORE_AVX2 inline __m256i Scramble(__m256i accumulator, __m256i secret) {
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(kPrime32x1));
  const __m256i mixed =
      _mm256_xor_si256(_mm256_xor_si256(accumulator, _mm256_srli_epi64(accumulator, 47)), secret);
  const __m256i low = _mm256_mul_epu32(mixed, prime);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
  return _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
}

template <Store kStore>
KVSTORE_AVX2 inline void Stripe(Avx2Accumulators& acc, std::byte* dst, const std::byte* src,
                                const std::byte* secret) {
  const __m256i low = LoadVector(src);
  const __m256i high = LoadVector(src + 32);
  StoreVector<kStore>(dst, low);
  StoreVector<kStore>(dst + 32, high);
  acc.low = Accumulate(acc.low, low, LoadVector(secret));
  acc.high = Accumulate(acc.high, high, LoadVector(secret + 32));
}

// Requires bytes >= kLongBytesMin; `dst` 32-byte aligned for kStreaming, unused for kNone.
template <Store kStore>
KVSTORE_AVX2 uint64_t Avx2Long(std::byte* dst, const std::byte* src, size_t bytes, uint64_t seed) {
  alignas(64) std::byte secret[XXH3_SECRET_DEFAULT_SIZE];
  XXH3_generateSecret_fromSeed(secret, seed);
  Avx2Accumulators acc = {
      _mm256_setr_epi64x(static_cast<int64_t>(kPrime32x3), static_cast<int64_t>(kPrime64x1),
                         static_cast<int64_t>(kPrime64x2), static_cast<int64_t>(kPrime64x3)),
      _mm256_setr_epi64x(static_cast<int64_t>(kPrime64x4), static_cast<int64_t>(kPrime32x2),
                         static_cast<int64_t>(kPrime64x5), static_cast<int64_t>(kPrime32x1))};
  const size_t blocks = (bytes - 1) / kBlockBytes;
  for (size_t block = 0; block < blocks; ++block) {
    const std::byte* in = src + block * kBlockBytes;
    std::byte* out = dst + block * kBlockBytes;
    for (size_t stripe = 0; stripe < kStripesInBlock; ++stripe) {
      const size_t at = stripe * kStripeBytes;
      _mm_prefetch(reinterpret_cast<const char*>(in + at + kPrefetchBytes), _MM_HINT_T0);
      Stripe<kStore>(acc, out + at, in + at, secret + stripe * kSecretStep);
    }
    const std::byte* scramble = secret + XXH3_SECRET_DEFAULT_SIZE - kStripeBytes;
    acc.low = Scramble(acc.low, LoadVector(scramble));
    acc.high = Scramble(acc.high, LoadVector(scramble + 32));
  }
  const size_t done = blocks * kBlockBytes;
  const size_t stripes = (bytes - 1 - done) / kStripeBytes;
  for (size_t stripe = 0; stripe < stripes; ++stripe) {
    const size_t at = done + stripe * kStripeBytes;
    Stripe<kStore>(acc, dst + at, src + at, secret + stripe * kSecretStep);
  }
  // The last stripe may overlap the one before: those bytes are read, stored and counted twice. It
  // may be unaligned.
  constexpr Store kLast = kStore == Store::kNone ? Store::kNone : Store::kCached;
  Stripe<kLast>(acc, dst + bytes - kStripeBytes, src + bytes - kStripeBytes,
                secret + kLastStripeSecret);
  alignas(32) uint64_t accumulators[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(accumulators), acc.low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(accumulators + 4), acc.high);
  return MergeAccumulators(accumulators, secret, bytes);
}

#undef KVSTORE_AVX2

bool HasAvx2() { return __builtin_cpu_supports("avx2") != 0; }

#else

bool HasAvx2() { return false; }

#endif

bool IsStreamable(const void* dst, size_t bytes) {
  return bytes >= kStreamingBytesMin && reinterpret_cast<uintptr_t>(dst) % 32 == 0;
}

}  // namespace

bool IsSupported(ChecksumPath path) {
  static const bool has_avx2 = HasAvx2();
  return path == ChecksumPath::kPortable || has_avx2;
}

ChecksumPath BestChecksumPath() {
  return IsSupported(ChecksumPath::kAvx2) ? ChecksumPath::kAvx2 : ChecksumPath::kPortable;
}

const char* PathName(ChecksumPath path) {
  return path == ChecksumPath::kAvx2 ? "avx2" : "portable";
}

uint64_t ChecksumBy(ChecksumPath path, const void* data, size_t bytes, uint64_t seed) {
#if defined(__x86_64__)
  if (path == ChecksumPath::kAvx2 && bytes >= kLongBytesMin) {
    const auto* source = static_cast<const std::byte*>(data);
    // Nothing is written; a null pointer must not be counted on from.
    return Avx2Long<Store::kNone>(const_cast<std::byte*>(source), source, bytes, seed);
  }
#else
  (void)path;
#endif
  return XXH3_64bits_withSeed(data, bytes, seed);
}

uint64_t CopyChecksumBy(ChecksumPath path, void* dst, const void* src, size_t bytes,
                        uint64_t seed) {
  std::byte* to = static_cast<std::byte*>(dst);
  const std::byte* from = static_cast<const std::byte*>(src);
  if (bytes < kLongBytesMin) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return XXH3_64bits_withSeed(to, bytes, seed);
  }
#if defined(__x86_64__)
  if (path == ChecksumPath::kAvx2) {
    return IsStreamable(dst, bytes) ? Avx2Long<Store::kStreaming>(to, from, bytes, seed)
                                    : Avx2Long<Store::kCached>(to, from, bytes, seed);
  }
#else
  (void)path;
#endif
  return PortableCopyChecksum(to, from, bytes, seed);
}

uint64_t Checksum(const void* data, size_t bytes, uint64_t seed) {
  return ChecksumBy(BestChecksumPath(), data, bytes, seed);
}

uint64_t CopyChecksum(void* dst, const void* src, size_t bytes, uint64_t seed) {
  const uint64_t checksum = CopyChecksumBy(BestChecksumPath(), dst, src, bytes, seed);
  FenceCopies();
  return checksum;
}

uint64_t CopyChecksumUnfenced(void* dst, const void* src, size_t bytes, uint64_t seed) {
  return CopyChecksumBy(BestChecksumPath(), dst, src, bytes, seed);
}

void FenceCopies() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace kvstore::kernels
