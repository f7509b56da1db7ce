// XXH3-64 with a seed, and a copy that takes it on the way. Bit-equal to XXH3_64bits_withSeed of
// libxxhash for every length and seed.
//
// The fused copy reads each byte once and writes it once, with streaming stores where the
// destination is aligned: it needs no read of the destination's cache lines, so it moves a third
// less memory traffic than a cached copy. The checksum is taken over the registers that are stored.
// If the source changes meanwhile, then either the result is not the checksum that the caller
// expects, or what was stored is what the result stands for.
//
// Thread-safe; no allocation. Includes nothing of ours. Measured figures:
// transfer/memory/README.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::kernels {

// Ways to compute the same bits. Chosen once by CPUID; named here so that tests reach each of them.
enum class ChecksumPath : uint8_t { kPortable, kAvx2 };
ChecksumPath BestChecksumPath();
bool IsSupported(ChecksumPath path);
const char* PathName(ChecksumPath path);  // "portable", "avx2"

// Checksum of `bytes` bytes at `data` (any alignment).
uint64_t Checksum(const void* data, size_t bytes, uint64_t seed);

// Copies `bytes` bytes from `src` to `dst` (any alignment, not overlapping) and returns their
// checksum. Streaming stores are used when `dst` is 32-byte aligned and bytes >=
// kStreamingBytesMin; they are fenced before the return, so the bytes are visible to other threads
// like those of any copy.
uint64_t CopyChecksum(void* dst, const void* src, size_t bytes, uint64_t seed);
inline constexpr size_t kStreamingBytesMin = 1024;
// For many pieces of one page: as CopyChecksum() without the fence. FenceCopies() comes before
// anybody is told that the bytes are there.
uint64_t CopyChecksumUnfenced(void* dst, const void* src, size_t bytes, uint64_t seed);
void FenceCopies();

// As above by a given path. Requires IsSupported(path).
uint64_t ChecksumBy(ChecksumPath path, const void* data, size_t bytes, uint64_t seed);
uint64_t CopyChecksumBy(ChecksumPath path, void* dst, const void* src, size_t bytes,
                        uint64_t seed);  // unfenced

}  // namespace kvstore::kernels
