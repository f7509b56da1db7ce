#include "kvstore/base/acquire_packet.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace kvstore {
namespace {

constexpr int kBufferBytes = 320 << 10;  // the kernel doubles it
constexpr int kBufferReserve = 4096;     // what the kernel keeps of it for itself, and more

// Appends a column, or takes it from `*at` on.
template <typename T>
void Put(const std::vector<T>& column, std::byte** at) {
  if (column.empty()) return;  // memcpy takes no null pointers, for no bytes either
  std::memcpy(*at, column.data(), column.size() * sizeof(T));
  *at += column.size() * sizeof(T);
}
template <typename T>
void Take(std::vector<T>& column, const std::byte** at) {
  if (column.empty()) return;
  std::memcpy(column.data(), *at, column.size() * sizeof(T));
  *at += column.size() * sizeof(T);
}

}  // namespace

size_t GrowSendBuffer(int fd) {
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBufferBytes, sizeof kBufferBytes);
  int bytes = 0;
  socklen_t length = sizeof bytes;
  if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &length) != 0) return 0;
  return static_cast<size_t>(std::max(bytes - kBufferReserve, 0));
}

void AcquiredColumns::resize(size_t num_blocks) {
  generation.resize(num_blocks);
  page_checksum.resize(num_blocks);
  slab.resize(num_blocks);
  slot.resize(num_blocks);
  tier.resize(num_blocks);
  found_in.resize(num_blocks);
}

std::vector<std::byte> EncodeAcquireRequest(const Fingerprint& fingerprint, bool can_read_gpu,
                                            std::span<const BlockHash> hashes) {
  const AcquirePacketHeader header{.num_blocks = static_cast<uint32_t>(hashes.size()),
                                   .can_read_gpu = can_read_gpu,
                                   .fingerprint = fingerprint};
  std::vector<std::byte> packet(sizeof header + hashes.size_bytes());
  std::memcpy(packet.data(), &header, sizeof header);
  if (!hashes.empty())
    std::memcpy(packet.data() + sizeof header, hashes.data(), hashes.size_bytes());
  return packet;
}

std::optional<AcquirePacket> DecodeAcquireRequest(std::span<const std::byte> packet) {
  AcquirePacketHeader header;
  if (packet.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, packet.data(), sizeof header);
  const std::span<const std::byte> hashes = packet.subspan(sizeof header);
  if (header.version != kMemorySocketVersion || header.kind != MemoryRequestKind::kAcquire ||
      header.can_read_gpu > 1 || header.num_blocks == 0 ||
      header.num_blocks > kAcquirePacketBlocksMax ||
      hashes.size() != header.num_blocks * sizeof(BlockHash)) {
    return std::nullopt;
  }
  AcquirePacket decoded{.fingerprint = header.fingerprint,
                        .can_read_gpu = header.can_read_gpu == 1,
                        .hashes = std::vector<BlockHash>(header.num_blocks)};
  std::memcpy(decoded.hashes.data(), hashes.data(), hashes.size());
  return decoded;
}

std::vector<std::byte> EncodeAcquireReply(const AcquireReply& reply) {
  const AcquiredColumns& blocks = reply.blocks;
  const AcquireReplyHeader header{
      .code = reply.code, .lease = reply.lease, .num_blocks = static_cast<uint32_t>(blocks.size())};
  std::vector<std::byte> packet(sizeof header + blocks.size() * kAcquireReplyBytesPerBlock);
  std::memcpy(packet.data(), &header, sizeof header);
  std::byte* at = packet.data() + sizeof header;
  Put(blocks.generation, &at);
  Put(blocks.page_checksum, &at);
  Put(blocks.slab, &at);
  Put(blocks.slot, &at);
  Put(blocks.tier, &at);
  Put(blocks.found_in, &at);
  return packet;
}

std::optional<AcquireReply> DecodeAcquireReply(std::span<const std::byte> packet) {
  AcquireReplyHeader header;
  if (packet.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, packet.data(), sizeof header);
  if (header.version != kMemorySocketVersion || header.reserved != 0 ||
      header.num_blocks > kAcquirePacketBlocksMax ||
      packet.size() != sizeof header + header.num_blocks * kAcquireReplyBytesPerBlock) {
    return std::nullopt;
  }
  AcquireReply reply{.code = header.code, .lease = header.lease, .blocks = {}};
  AcquiredColumns& blocks = reply.blocks;
  blocks.resize(header.num_blocks);
  const std::byte* at = packet.data() + sizeof header;
  Take(blocks.generation, &at);
  Take(blocks.page_checksum, &at);
  Take(blocks.slab, &at);
  Take(blocks.slot, &at);
  Take(blocks.tier, &at);
  Take(blocks.found_in, &at);
  return reply;
}

}  // namespace kvstore
