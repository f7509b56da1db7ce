// The protocol of the memory socket: how a client on the same host opens a session and receives the
// memory that pages lie in.
//
// A Unix SOCK_SEQPACKET socket beside the gRPC one (its path with ".mem" appended). One connection
// is one session: when it closes, for whatever reason, the daemon drops the session's leases and
// reservations. Little-endian messages, one a packet; file descriptors travel by SCM_RIGHTS. The
// daemon answers each request in order, kRelease excepted, which has no answer; it sends nothing
// unasked. A malformed packet ends the connection. Version mismatch: the daemon answers with
// kVersionMismatch and closes.
//
// kAcquire and kRelease are short cuts of the gRPC calls of those names, for a prefix whose blocks
// can all be read where they are: one packet there and one back, in acquire_packet.h.
#pragma once

#include <array>
#include <cstdint>

namespace kvstore {

inline constexpr uint32_t kMemorySocketVersion = 2;
inline constexpr char kMemorySocketSuffix[] = ".mem";
// The admin service listens beside it too, on a gRPC socket of its own.
inline constexpr char kAdminSocketSuffix[] = ".admin";

enum class MemoryRequestKind : uint32_t { kHello = 1, kMapSlab = 2, kAcquire = 3, kRelease = 4 };
enum class MemoryReplyCode : uint32_t {
  kOk = 0,
  kVersionMismatch = 1,
  kNotAllowed = 2,  // the peer's uid may not act for this tenant
  kNoSuchSlab =
      3,  // unknown, given back, or another tenant's: the three look the same from outside
  kTooManySessions = 4,
  kMalformed = 5,
  kUseCall = 6,  // kAcquire: what this socket does not do; the gRPC call does, or says why not
};
// What the session will do with mapped slabs.
enum class MemoryAccess : uint32_t { kReadOnly = 1, kReadWrite = 2 };

struct MemoryRequest {
  uint32_t version = kMemorySocketVersion;
  MemoryRequestKind kind{};
  MemoryAccess access{};          // kHello
  uint32_t tier = 0;              // kMapSlab: TierKind
  uint32_t slab = 0;              // kMapSlab
  uint32_t reserved = 0;          // zero
  std::array<char, 64> tenant{};  // kHello: zero-padded; all zero: the peer's default tenant
};
static_assert(sizeof(MemoryRequest) == 88, "on the wire");

// With kMapSlab and kOk two descriptors come along: [0] the slab, [1] its generation table
// (read-only): uint64_t for each 4 KiB of the slab; the slot at offset o has its generation at o /
// 4096. Both are memfds sealed against shrinking and growing; a slab that is not is device memory,
// to be imported by cuMemImportFromShareableHandle().
struct MemoryReply {
  uint32_t version = kMemorySocketVersion;
  MemoryReplyCode code{};
  std::array<uint8_t, 16>
      session_token{};  // kHello: names the session in gRPC calls (metadata "kvstore-session-bin")
  uint64_t incarnation = 0;  // kHello: of the daemon; changes at every start
  uint64_t slab_bytes = 0;   // kMapSlab
};
static_assert(sizeof(MemoryReply) == 40, "on the wire");

struct MemoryRelease {
  uint32_t version = kMemorySocketVersion;
  MemoryRequestKind kind = MemoryRequestKind::kRelease;
  uint64_t lease = 0;
};
static_assert(sizeof(MemoryRelease) == 16, "on the wire");

}  // namespace kvstore
