// The memory socket as a client sees it: packets and descriptors of a daemon that may lie.
//
//   input: flags u8 (1: read-write), then [descriptors u8, {kind u8, pages u8}*, length u16, packet]*
//
// Promises: what is mapped can be read to its last byte; every descriptor that came is closed or
// owned; an answer is decoded to what encodes to the same bytes; after the last packet the client
// ends with a status, and does not wait.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "kvstore/base/acquire_packet.h"
#include "kvstore/client/memory_session.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore {
namespace {

using client::MappedSlab;
using client::MemorySession;
using fuzz::Input;

constexpr int kPacketsMax = 8;
constexpr absl::Duration kTimeout = absl::Seconds(5);

// The lowest number that is free: the same before and after, unless a descriptor was lost.
int FreeDescriptor() {
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  close(fd);
  return fd;
}

UniqueFd MakeDescriptor(uint8_t kind, uint8_t pages) {
  switch (kind % 5) {
    case 0:
      return UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC));
    case 1:
      return UniqueFd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    default:
      break;
  }
  UniqueFd memory(memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC));
  REQUIRE(memory.is_open() && ftruncate(memory.get(), pages % 16 * off_t{4096}) == 0);
  if (kind % 5 == 3) REQUIRE(fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  if (kind % 5 == 4) REQUIRE(fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  return memory;
}

void SendPacket(int fd, Input& input) {
  std::vector<UniqueFd> owned;
  std::vector<int> descriptors;
  const int count = input.Take<uint8_t>() % 4;
  for (int i = 0; i < count; ++i) {
    const auto kind = input.Take<uint8_t>(), pages = input.Take<uint8_t>();
    owned.push_back(MakeDescriptor(kind, pages));
    descriptors.push_back(owned.back().get());
  }
  const std::string packet = fuzz::Copy(input.TakePart());
  iovec part{.iov_base = const_cast<char*>(packet.data()), .iov_len = packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  }
  // A full buffer: what is behind it is not said.
  (void)sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void Touch(const MappedSlab& slab, MemoryAccess access) {
  REQUIRE(slab.bytes() > 0);
  volatile std::byte sum{};
  for (uint64_t at = 0; at < slab.bytes(); at += 4096) {
    sum = sum | slab.data()[at];
    (void)slab.Generation(at);
  }
  sum = sum | slab.data()[slab.bytes() - 1];
  (void)slab.Generation(slab.bytes() - 1);
  if (access == MemoryAccess::kReadWrite) slab.data()[slab.bytes() - 1] = std::byte{1};
}

void CheckReplyCodec(const std::string& packet) {
  const std::optional<AcquireReply> reply = DecodeAcquireReply(fuzz::AsBytes(packet));
  if (!reply.has_value()) return;
  const AcquiredColumns& blocks = reply->blocks;
  REQUIRE(blocks.size() <= kAcquirePacketBlocksMax);
  REQUIRE(blocks.page_checksum.size() == blocks.size() && blocks.slab.size() == blocks.size());
  REQUIRE(blocks.slot.size() == blocks.size() && blocks.tier.size() == blocks.size());
  REQUIRE(blocks.found_in.size() == blocks.size());
  REQUIRE(fuzz::AsText(EncodeAcquireReply(*reply)) == packet);
}

void Converse(UniqueFd socket, MemoryAccess access) {
  absl::StatusOr<std::shared_ptr<MemorySession>> session =
      MemorySession::Start(std::move(socket), "team-a", access, nullptr, kTimeout);
  if (!session.ok()) return;
  REQUIRE((*session)->token().size() == 16);
  const std::vector<BlockHash> hashes(3);
  for (uint32_t i = 0; i < kPacketsMax && !(*session)->is_lost(); ++i) {
    const absl::StatusOr<std::shared_ptr<const MappedSlab>> slab = (*session)->Slab(1, i, kTimeout);
    if (slab.ok()) {
      Touch(**slab, access);
      REQUIRE((*session)->CachedSlab(1, i) == *slab);
    } else {
      REQUIRE((*session)->CachedSlab(1, i) == nullptr);
    }
    (void)(*session)->Acquire(Fingerprint{}, false, hashes, kTimeout);
  }
  (void)(*session)->TryRelease(1);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  const int free_before = FreeDescriptor();
  {
    fuzz::Input input(data, bytes);
    const MemoryAccess access =
        (input.Take<uint8_t>() & 1) != 0 ? MemoryAccess::kReadWrite : MemoryAccess::kReadOnly;
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    UniqueFd ours(ends[0]), daemon(ends[1]);
    for (int i = 0; i < kPacketsMax && !input.is_empty(); ++i) SendPacket(daemon.get(), input);
    shutdown(daemon.get(), SHUT_WR);
    Converse(std::move(ours), access);
  }
  REQUIRE(FreeDescriptor() == free_before);
  CheckReplyCodec(std::string(reinterpret_cast<const char*>(data), bytes));
  return 0;
}
