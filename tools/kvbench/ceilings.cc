#include "tools/kvbench/ceilings.h"

#include <openssl/sha.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/stopwatch.h"

namespace kvstore::bench {
namespace {

// Keeps a result from being left out by the compiler.
void Use(uint64_t value) {
  static std::atomic<uint64_t> sink;
  sink.store(value, std::memory_order_relaxed);
}

bool SendAll(int fd, const std::byte* bytes, size_t count) {
  while (count > 0) {
    const ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes += sent;
    count -= static_cast<size_t>(sent);
  }
  return true;
}

bool ReceiveAll(int fd, std::byte* bytes, size_t count) {
  while (count > 0) {
    const ssize_t received = recv(fd, bytes, count, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return false;
    bytes += received;
    count -= static_cast<size_t>(received);
  }
  return true;
}

using EchoHeader = std::array<uint32_t, 2>;  // request and reply bytes
constexpr uint32_t kEchoBytesMax = 16 << 20;

[[noreturn]] void RunEcho(int fd) {
  std::vector<std::byte> request(kEchoBytesMax), reply(kEchoBytesMax);
  EchoHeader header;
  while (ReceiveAll(fd, reinterpret_cast<std::byte*>(header.data()), sizeof header) &&
         ReceiveAll(fd, request.data(), header[0]) && SendAll(fd, reply.data(), header[1])) {
  }
  _exit(0);
}

}  // namespace

absl::StatusOr<SetMemory> SetMemory::Make(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes"));
  }
  madvise(data, bytes, MADV_HUGEPAGE);
  std::memset(data, 0xee, bytes);
  return SetMemory(static_cast<std::byte*>(data), bytes);
}

SetMemory::SetMemory(SetMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SetMemory::~SetMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

double CopySeconds(const SetMemory& to, const SetMemory& from, size_t piece_bytes,
                   std::span<const uint32_t> order) {
  const Stopwatch watch;
  for (const uint32_t i : order) {
    std::memcpy(to.bytes().data() + i * piece_bytes, from.bytes().data() + i * piece_bytes,
                piece_bytes);
  }
  return watch.Seconds();
}

double ReadSeconds(std::span<const std::byte> bytes) {
  const Stopwatch watch;
  std::array<uint64_t, 8> sums{};
  for (size_t at = 0; at + 64 <= bytes.size(); at += 64) {
    std::array<uint64_t, 8> words;
    std::memcpy(words.data(), bytes.data() + at, 64);
    for (size_t i = 0; i < 8; ++i) sums[i] += words[i];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  Use(sum);
  return watch.Seconds();
}

double Sha256Seconds(std::span<const std::byte> bytes) {
  const Stopwatch watch;
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  Use(digest[0]);
  return watch.Seconds();
}

absl::StatusOr<EchoProcess> EchoProcess::Start() {
  std::array<int, 2> fds;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }
  UniqueFd ours(fds[0]), theirs(fds[1]);
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) {
    ours.Reset();
    RunEcho(theirs.get());
  }
  return EchoProcess(std::move(ours));
}

EchoProcess::~EchoProcess() = default;

absl::StatusOr<double> EchoProcess::RoundTripSeconds(uint32_t request_bytes, uint32_t reply_bytes) {
  const EchoHeader header{request_bytes, reply_bytes};
  std::vector<std::byte> request(sizeof header + request_bytes), reply(reply_bytes);
  std::memcpy(request.data(), header.data(), sizeof header);
  const Stopwatch watch;
  if (!SendAll(socket_.get(), request.data(), request.size()) ||
      !ReceiveAll(socket_.get(), reply.data(), reply.size())) {
    return absl::UnavailableError("the echo process is gone");
  }
  return watch.Seconds();
}

}  // namespace kvstore::bench
