#include "kvstore/service/memory_packets.h"

#include <sys/socket.h>

#include <algorithm>

#include "kvstore/service/translate.h"

namespace kvstore::service {

SendResult SendPacket(int fd, std::span<const std::byte> packet) {
  const ssize_t sent = send(fd, packet.data(), packet.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(packet.size()) ? SendResult::kSent : SendResult::kFailed;
}

SendResult SendReply(int fd, const MemoryReply& reply, std::span<const int> descriptors) {
  iovec part{.iov_base = const_cast<MemoryReply*>(&reply), .iov_len = sizeof reply};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  const ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(sizeof reply) ? SendResult::kSent : SendResult::kFailed;
}

std::optional<std::string> FieldText(const std::array<char, 64>& field) {
  const auto end = std::ranges::find(field, '\0');
  if (end == field.end() || std::any_of(end, field.end(), [](char c) { return c != '\0'; }))
    return std::nullopt;
  return std::string(field.begin(), end);
}

AcquireReply AcquireInPlace(store::Store& store, SessionId session, std::string_view tenant,
                            const AcquirePacket& request) {
  AcquireReply reply{.code = MemoryReplyCode::kUseCall, .lease = 0, .blocks = {}};
  const auto ns = store.FindNamespace(tenant, request.fingerprint);
  if (!ns.ok()) return reply;
  const store::AcquireOptions options{.can_read_gpu = request.can_read_gpu,
                                      .must_be_readable = true};
  store.Acquire(session, ns->id, request.hashes, options, [&](const store::AcquireUpdate& update) {
    if (!update.status.ok()) return;
    reply.code = MemoryReplyCode::kOk;
    reply.lease = update.lease.value();
    AcquiredColumns& blocks = reply.blocks;
    blocks.resize(update.ready.size());
    for (size_t i = 0; i < update.ready.size(); ++i) {
      const store::AcquireUpdate::Ready& ready = update.ready[i];
      blocks.generation[i] = ready.location.page.generation;
      blocks.page_checksum[i] = ready.location.page_checksum;
      blocks.slab[i] = ready.location.page.slab;
      blocks.slot[i] = ready.location.page.slot;
      blocks.tier[i] = static_cast<uint8_t>(ToWire(ready.location.tier));
      blocks.found_in[i] = static_cast<uint8_t>(ToWire(ready.from));
    }
  });
  return reply;
}

}  // namespace kvstore::service
