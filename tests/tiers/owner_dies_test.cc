// The owner of shared memory is killed while a client copies pages out of it: a thousand times, at
// random moments, by SIGKILL. The client's mapping outlives the owner, so a copy ends with the
// right bytes or with a status, never with a signal.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "kvstore/base/unique_fd.h"
#include "tests/tiers/sealed_page.h"
#include "tiers/slab_memory.h"

namespace kvstore::tiers {
namespace {

constexpr int kRounds = 1000;
constexpr PageShape kShape{3, 16384};
constexpr uint64_t kSlab = uint64_t{1} << 20;

bool SendDescriptor(int socket, int fd) {
  char byte = 'd';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

UniqueFd ReceiveDescriptor(int socket) {
  char byte;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return UniqueFd();
  int fd = -1;
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message))
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return UniqueFd(fd);
}

// The owner: one page that stays, one that it writes over and over with two contents. Never
// returns.
[[noreturn]] void OwnMemory(int socket, const SealedPage& stays, const SealedPage& one,
                            const SealedPage& other) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto memory =
      HostSlabMemory::Create({.name = "owner-dies", .bytes = kSlab}, HostSlabMemory::Locking::kOff);
  if (!memory.ok()) _exit(2);
  std::byte* slot = (*memory)->host_data();
  std::memcpy(slot, stays.data(), kShape.slot_bytes());
  slot += kShape.slot_bytes();
  std::memcpy(slot, one.data(), kShape.slot_bytes());
  auto exported = (*memory)->Export(MemoryAccess::kReadOnly);
  if (!exported.ok() || !SendDescriptor(socket, exported->slab.get())) _exit(3);
  for (;;) {
    std::memcpy(slot, other.data(), kShape.slot_bytes());
    std::memcpy(slot, one.data(), kShape.slot_bytes());
  }
}

struct Tally {
  int copies = 0, good = 0, refused = 0, wrong = 0;
};

void CopyOnce(const std::byte* slot, const SealedPage& expected, Tally* tally) {
  static std::array<std::byte, size_t{3} * 16384> page;
  ++tally->copies;
  if (!transfer::CopyFromSlot(page.data(), slot, expected.identity()).ok()) {
    ++tally->refused;
  } else if (std::memcmp(page.data(), expected.data(), page.size()) == 0) {
    ++tally->good;
  } else {
    ++tally->wrong;
  }
}

TEST(OwnerDies, ACopyEndsWithItsBytesOrAStatusAThousandTimes) {
  const SealedPage stays(1, kShape), one(2, kShape), other(3, kShape);
  std::mt19937 random(19);
  Tally stable, unstable;
  for (int round = 0; round < kRounds; ++round) {
    int sockets[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    const UniqueFd ours(sockets[0]);
    UniqueFd theirs(sockets[1]);
    const pid_t owner = fork();
    if (owner == 0) OwnMemory(theirs.get(), stays, one, other);
    theirs.Reset();
    const UniqueFd slab = ReceiveDescriptor(ours.get());
    ASSERT_TRUE(slab.is_open());
    void* mapped = mmap(nullptr, kSlab, PROT_READ, MAP_SHARED, slab.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    const auto* slot = static_cast<const std::byte*>(mapped);
    std::atomic<bool> is_dead{false};
    std::thread killer([&, after = std::chrono::microseconds(random() % 400)] {
      std::this_thread::sleep_for(after);
      kill(owner, SIGKILL);
      waitpid(owner, nullptr, 0);
      is_dead = true;
    });
    while (!is_dead) {
      CopyOnce(slot, stays, &stable);
      CopyOnce(slot + kShape.slot_bytes(), one, &unstable);
    }
    killer.join();
    CopyOnce(slot, stays, &stable);
    CopyOnce(slot + kShape.slot_bytes(), one, &unstable);
    munmap(mapped, kSlab);
  }
  EXPECT_EQ(stable.wrong + unstable.wrong, 0);
  EXPECT_EQ(stable.refused, 0) << "pages that nobody was writing";
  EXPECT_GE(stable.copies, 2 * kRounds);
  EXPECT_GT(unstable.refused, 0) << "no copy met a write: nothing was shown";
  std::printf("%d copies, %d of them refused as torn, %d kills\n", stable.copies + unstable.copies,
              unstable.refused, kRounds);
}

}  // namespace
}  // namespace kvstore::tiers
