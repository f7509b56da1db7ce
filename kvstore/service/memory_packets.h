// Packets of the memory socket: sending them, and what the core does for one of them.
//
// Stateless. Nothing here waits: a packet that does not fit into the socket's buffer is not sent.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kvstore/base/acquire_packet.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/store/store.h"

namespace kvstore::service {

enum class SendResult { kSent, kFailed };
SendResult SendPacket(int fd, std::span<const std::byte> packet);
// At most two descriptors.
SendResult SendReply(int fd, const MemoryReply& reply, std::span<const int> descriptors = {});

// The message that a packet is, if it has its size.
template <typename Message>
std::optional<Message> MessageOf(std::span<const std::byte> packet) {
  Message message;
  if (packet.size() != sizeof message) return std::nullopt;
  std::memcpy(&message, packet.data(), sizeof message);
  return message;
}

// The name in a fixed field: zero-padded, and nothing behind the first zero. nullopt: not so.
std::optional<std::string> FieldText(const std::array<char, 64>& field);

// On the core. kUseCall for a prefix of which a block has to come up first, and for every error.
AcquireReply AcquireInPlace(store::Store& store, SessionId session, std::string_view tenant,
                            const AcquirePacket& request);

}  // namespace kvstore::service
