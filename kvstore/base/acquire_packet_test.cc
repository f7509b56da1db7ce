#include "kvstore/base/acquire_packet.h"

#include <gtest/gtest.h>

#include <cstring>

namespace kvstore {
namespace {

std::vector<BlockHash> Hashes(size_t n) {
  std::vector<BlockHash> hashes(n);
  for (size_t i = 0; i < n; ++i) hashes[i].bytes.fill(static_cast<uint8_t>(i + 1));
  return hashes;
}

AcquireReply ReplyOf(size_t n) {
  AcquireReply reply{.code = MemoryReplyCode::kOk, .lease = 77, .blocks = {}};
  reply.blocks.resize(n);
  for (size_t i = 0; i < n; ++i) {
    reply.blocks.generation[i] = 1000 + i;
    reply.blocks.page_checksum[i] = 2000 + i;
    reply.blocks.slab[i] = static_cast<uint32_t>(3000 + i);
    reply.blocks.slot[i] = static_cast<uint32_t>(4000 + i);
    reply.blocks.tier[i] = 2;
    reply.blocks.found_in[i] = 1;
  }
  return reply;
}

TEST(AcquirePacket, ARequestIsWhatWasAskedFor) {
  const Fingerprint fingerprint{.bytes = {1, 2, 3}};
  for (const size_t n : {size_t{1}, size_t{kAcquirePacketBlocksMax}}) {
    const auto decoded = DecodeAcquireRequest(EncodeAcquireRequest(fingerprint, true, Hashes(n)));
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(decoded->fingerprint, fingerprint);
    EXPECT_TRUE(decoded->can_read_gpu);
    EXPECT_EQ(decoded->hashes, Hashes(n));
  }
}

TEST(AcquirePacket, AReplyIsWhatWasAnswered) {
  for (const size_t n : {0, 1, 3}) {
    const AcquireReply reply = ReplyOf(n);
    const auto decoded = DecodeAcquireReply(EncodeAcquireReply(reply));
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(decoded->lease, reply.lease);
    EXPECT_EQ(decoded->blocks.generation, reply.blocks.generation);
    EXPECT_EQ(decoded->blocks.page_checksum, reply.blocks.page_checksum);
    EXPECT_EQ(decoded->blocks.slab, reply.blocks.slab);
    EXPECT_EQ(decoded->blocks.slot, reply.blocks.slot);
    EXPECT_EQ(decoded->blocks.tier, reply.blocks.tier);
    EXPECT_EQ(decoded->blocks.found_in, reply.blocks.found_in);
  }
}

TEST(AcquirePacket, EveryOtherLengthIsMalformed) {
  const std::vector<std::byte> request = EncodeAcquireRequest({}, false, Hashes(3));
  const std::vector<std::byte> reply = EncodeAcquireReply(ReplyOf(3));
  for (size_t bytes = 0; bytes < request.size(); ++bytes)
    EXPECT_FALSE(DecodeAcquireRequest(std::span(request).first(bytes)).has_value()) << bytes;
  for (size_t bytes = 0; bytes < reply.size(); ++bytes)
    EXPECT_FALSE(DecodeAcquireReply(std::span(reply).first(bytes)).has_value()) << bytes;
  for (std::vector<std::byte> longer : {request, reply}) {
    longer.push_back(std::byte{0});
    EXPECT_FALSE(DecodeAcquireRequest(longer).has_value());
    EXPECT_FALSE(DecodeAcquireReply(longer).has_value());
  }
}

TEST(AcquirePacket, HeadersAreChecked) {
  const auto with_header = [](auto change) {
    std::vector<std::byte> packet = EncodeAcquireRequest({}, false, Hashes(1));
    AcquirePacketHeader header;
    std::memcpy(&header, packet.data(), sizeof header);
    change(header);
    std::memcpy(packet.data(), &header, sizeof header);
    return DecodeAcquireRequest(packet).has_value();
  };
  EXPECT_TRUE(with_header([](AcquirePacketHeader&) {}));
  EXPECT_FALSE(with_header([](AcquirePacketHeader& h) { h.version = 1; }));
  EXPECT_FALSE(with_header([](AcquirePacketHeader& h) { h.kind = MemoryRequestKind::kHello; }));
  EXPECT_FALSE(with_header([](AcquirePacketHeader& h) { h.can_read_gpu = 2; }));
  EXPECT_FALSE(with_header([](AcquirePacketHeader& h) { h.num_blocks = 0; }));
  EXPECT_FALSE(with_header([](AcquirePacketHeader& h) { h.num_blocks = 0x08000001; }))
      << "times 32 it is 32 again in 32 bits";
  EXPECT_FALSE(DecodeAcquireRequest(EncodeAcquireRequest({}, false, Hashes(8193))).has_value());
}

}  // namespace
}  // namespace kvstore
