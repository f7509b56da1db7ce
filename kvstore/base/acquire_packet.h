// The Acquire of the memory socket, as bytes: a header, and behind it a column for each property of
// the blocks.
//
//   request  AcquirePacketHeader, num_blocks x hash[32]
//   reply    AcquireReplyHeader, and for each of num_blocks: generation u64, page_checksum u64,
//            slab u32, slot u32, tier u8, found_in u8, one column after another; tiers as on the
//            wire (kvstore.v1.Tier)
//
// Decoding trusts nothing: sizes must agree to the byte. Pure functions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvstore/base/block_hash.h"
#include "kvstore/base/memory_socket.h"

namespace kvstore {

// More take the gRPC call: a packet must fit into a socket buffer.
inline constexpr uint32_t kAcquirePacketBlocksMax = 8192;
// Makes room in a memory socket for long packets, within net.core.wmem_max. Returns how long one
// may be; 0 on errors: long prefixes then take the gRPC call.
size_t GrowSendBuffer(int fd);

struct AcquirePacketHeader {
  uint32_t version = kMemorySocketVersion;
  MemoryRequestKind kind = MemoryRequestKind::kAcquire;
  uint32_t num_blocks = 0;
  uint32_t can_read_gpu = 0;  // 0 or 1
  Fingerprint fingerprint;
};
static_assert(sizeof(AcquirePacketHeader) == 32, "on the wire");

struct AcquireReplyHeader {
  uint32_t version = kMemorySocketVersion;
  MemoryReplyCode code{};
  uint64_t lease = 0;
  uint32_t num_blocks = 0;  // matched: all of them are leased and readable
  uint32_t reserved = 0;
};
static_assert(sizeof(AcquireReplyHeader) == 24, "on the wire");

inline constexpr size_t kAcquireRequestBytesMax =
    sizeof(AcquirePacketHeader) + kAcquirePacketBlocksMax * sizeof(BlockHash);
inline constexpr size_t kAcquireReplyBytesPerBlock = 26;
inline constexpr size_t kAcquireReplyBytesMax =
    sizeof(AcquireReplyHeader) + kAcquirePacketBlocksMax * kAcquireReplyBytesPerBlock;

// Where acquired blocks lie, an element a block in each column; the columns are equally long.
struct AcquiredColumns {
  std::vector<uint64_t> generation, page_checksum;
  std::vector<uint32_t> slab, slot;
  std::vector<uint8_t> tier, found_in;

  void resize(size_t num_blocks);
  size_t size() const { return generation.size(); }
};

struct AcquirePacket {
  Fingerprint fingerprint;
  bool can_read_gpu = false;
  std::vector<BlockHash> hashes;  // 1 to kAcquirePacketBlocksMax
};
std::vector<std::byte> EncodeAcquireRequest(const Fingerprint& fingerprint, bool can_read_gpu,
                                            std::span<const BlockHash> hashes);
// nullopt: malformed.
std::optional<AcquirePacket> DecodeAcquireRequest(std::span<const std::byte> packet);

struct AcquireReply {
  MemoryReplyCode code{};
  uint64_t lease = 0;
  AcquiredColumns blocks;
};
std::vector<std::byte> EncodeAcquireReply(const AcquireReply& reply);
// nullopt: malformed.
std::optional<AcquireReply> DecodeAcquireReply(std::span<const std::byte> packet);

}  // namespace kvstore
