#include "kvstore/client/memory_session.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::client {
namespace {

// How long the daemon may take to answer on the memory socket, however short the caller's own
// deadline is: calls may return this much later than asked when the daemon is frozen.
constexpr absl::Duration kReplyTimeoutMin = absl::Milliseconds(250);

constexpr uint64_t kGenerationStride = 4096;  // bytes of a slab that one generation stands for

absl::Status Lost(const std::string& what) {
  return absl::UnavailableError(absl::StrCat("the daemon has gone: ", what));
}

// Why connect() failed, for people.
absl::Status ConnectError(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
      return absl::UnavailableError(absl::StrCat("no daemon: there is no socket ", path));
    case ECONNREFUSED:
      return absl::UnavailableError(absl::StrCat("no daemon: nobody listens on ", path));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(absl::StrCat("not allowed to connect to ", path));
    default:
      return absl::UnavailableError(
          absl::StrCat("cannot connect to ", path, ": ", std::strerror(error)));
  }
}

absl::StatusOr<UniqueFd> Connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return absl::InvalidArgumentError(absl::StrCat("socket path ", path, " is too long"));
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) return absl::UnavailableError(absl::StrCat("socket: ", std::strerror(errno)));
  // A Unix socket connects at once or not at all; EAGAIN: the backlog is full.
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return ConnectError(path, errno);
  return fd;
}

absl::Status Send(int fd, const MemoryRequest& request) {
  if (send(fd, &request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT) ==
      static_cast<ssize_t>(sizeof request))
    return absl::OkStatus();
  return Lost(std::strerror(errno));
}

struct Reply {
  MemoryReply message;
  std::array<UniqueFd, 2> descriptors;
  int num_descriptors = 0;
};

// Descriptors are owned from the moment the kernel gave them to us, whatever the message turns out
// to be.
void TakeDescriptors(msghdr& message, Reply* reply) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      UniqueFd owned(fd);
      if (reply->num_descriptors < 2)
        reply->descriptors[reply->num_descriptors++] = std::move(owned);
    }
  }
}

// Errors: DeadlineExceeded; Unavailable.
absl::Status WaitForReply(int fd, absl::Duration timeout) {
  pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
  const int timeout_ms =
      static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(timeout), 0, 600'000));
  int ready;
  do {
    ready = poll(&waiting, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0)
    return absl::DeadlineExceededError("the daemon did not answer on the memory socket in time");
  if (ready < 0) return Lost(std::strerror(errno));
  return absl::OkStatus();
}

absl::StatusOr<Reply> Receive(int fd, absl::Duration timeout) {
  RETURN_IF_ERROR(WaitForReply(fd, timeout));
  Reply reply;
  iovec part{.iov_base = &reply.message, .iov_len = sizeof reply.message};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got >= 0) TakeDescriptors(message, &reply);  // an empty packet may have some, too
  if (got == 0) return Lost("it closed the memory socket");
  if (got < 0) return Lost(std::strerror(errno));
  if (got != static_cast<ssize_t>(sizeof reply.message) || (message.msg_flags & MSG_TRUNC) != 0) {
    return absl::UnavailableError("a reply of the wrong size on the memory socket");
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0)
    return absl::ResourceExhaustedError("no file descriptor is free for a slab");
  return reply;
}

absl::Status HelloError(MemoryReplyCode code) {
  switch (code) {
    case MemoryReplyCode::kVersionMismatch:
      return absl::UnavailableError(
          absl::StrCat("the daemon speaks another version of the memory socket than ours, ",
                       kMemorySocketVersion));
    case MemoryReplyCode::kNotAllowed:
      return absl::PermissionDeniedError("our uid may not connect, or not act for this tenant");
    case MemoryReplyCode::kTooManySessions:
      return absl::ResourceExhaustedError("the daemon has no session free (server.sessions_max)");
    default:
      return absl::UnavailableError(
          absl::StrCat("the memory socket answered Hello with code ", static_cast<uint32_t>(code)));
  }
}

// Null: it failed, with errno.
void* MapFile(const UniqueFd& fd, uint64_t bytes, int protection) {
  void* data = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  return data == MAP_FAILED ? nullptr : data;
}

// Otherwise it is memory of a device.
bool IsSealedMemory(const UniqueFd& fd) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
}

absl::Status CheckSize(const UniqueFd& fd, uint64_t bytes, const char* what) {
  struct stat st;
  if (fstat(fd.get(), &st) != 0 || static_cast<uint64_t>(st.st_size) < bytes) {
    return absl::DataLossError(absl::StrCat("the ", what, " is smaller than the daemon said"));
  }
  // Without the seal its owner could shrink it under us: a read would raise SIGBUS.
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return absl::DataLossError(absl::StrCat("the ", what, " is not sealed against shrinking"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MappedSlab>> MappedSlab::Map(
    UniqueFd slab, UniqueFd generations, uint64_t slab_bytes, MemoryAccess access,
    std::shared_ptr<DeviceSlabs> device_slabs) {
  const uint64_t table_bytes =
      (slab_bytes + kGenerationStride - 1) / kGenerationStride * sizeof(uint64_t);
  if (slab_bytes == 0) return absl::DataLossError("an empty slab");
  RETURN_IF_ERROR(CheckSize(generations, table_bytes, "generation table"));
  std::shared_ptr<MappedSlab> mapped(new MappedSlab);
  mapped->bytes_ = slab_bytes;
  if (device_slabs != nullptr && !IsSealedMemory(slab)) {
    ASSIGN_OR_RETURN(mapped->device_, device_slabs->Import(std::move(slab), slab_bytes, access));
  } else {
    RETURN_IF_ERROR(CheckSize(slab, slab_bytes, "slab"));
    const int protection = access == MemoryAccess::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
    mapped->data_ = static_cast<std::byte*>(MapFile(slab, slab_bytes, protection));
  }
  mapped->generations_ = static_cast<uint64_t*>(MapFile(generations, table_bytes, PROT_READ));
  const bool has_bytes = mapped->data_ != nullptr || mapped->device_ != nullptr;
  if (!has_bytes || mapped->generations_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map a slab of ", slab_bytes, " bytes: ", std::strerror(errno)));
  }
  if (device_slabs != nullptr && mapped->data_ != nullptr) {
    device_slabs->RegisterHost(mapped->data_, slab_bytes, access);
    mapped->registered_with_ = std::move(device_slabs);
  }
  return std::shared_ptr<const MappedSlab>(std::move(mapped));
}

MappedSlab::~MappedSlab() {
  const uint64_t table_bytes =
      (bytes_ + kGenerationStride - 1) / kGenerationStride * sizeof(uint64_t);
  if (registered_with_ != nullptr) registered_with_->UnregisterHost(data_);
  if (data_ != nullptr) munmap(data_, bytes_);
  if (generations_ != nullptr) munmap(generations_, table_bytes);
}

absl::StatusOr<std::shared_ptr<MemorySession>> MemorySession::Open(
    const std::string& socket_path, const std::string& tenant, MemoryAccess access,
    std::shared_ptr<DeviceSlabs> device_slabs, absl::Duration timeout) {
  ASSIGN_OR_RETURN(UniqueFd socket, Connect(socket_path));
  return Start(std::move(socket), tenant, access, std::move(device_slabs), timeout);
}

absl::StatusOr<std::shared_ptr<MemorySession>> MemorySession::Start(
    UniqueFd socket, const std::string& tenant, MemoryAccess access,
    std::shared_ptr<DeviceSlabs> device_slabs, absl::Duration timeout) {
  MemoryRequest hello{.kind = MemoryRequestKind::kHello, .access = access};
  if (tenant.size() >= hello.tenant.size())
    return absl::InvalidArgumentError("tenant: longer than 63 bytes");
  std::ranges::copy(tenant, hello.tenant.begin());
  std::shared_ptr<MemorySession> session(new MemorySession);
  session->fd_ = std::move(socket);
  session->packet_bytes_max_ = GrowSendBuffer(session->fd_.get());
  // Refused connections are closed at once: the send may fail while the reason is there to be read.
  absl::Status sent = Send(session->fd_.get(), hello);
  absl::StatusOr<Reply> reply = Receive(session->fd_.get(), timeout);
  if (!reply.ok()) return reply.status();
  if (reply->message.code != MemoryReplyCode::kOk) return HelloError(reply->message.code);
  RETURN_IF_ERROR(sent);
  session->token_.assign(reply->message.session_token.begin(), reply->message.session_token.end());
  session->incarnation_ = reply->message.incarnation;
  session->access_ = access;
  session->device_slabs_ = std::move(device_slabs);
  return session;
}

void MemorySession::GiveUp() {
  MarkLost();
  shutdown(fd_.get(), SHUT_RDWR);
}

absl::StatusOr<std::optional<AcquireReply>> MemorySession::Acquire(
    const Fingerprint& fingerprint, bool can_read_gpu, std::span<const BlockHash> hashes,
    absl::Duration timeout) {
  // Not for the impatient: an answer that is not waited for ends the session.
  if (timeout < kReplyTimeoutMin || hashes.size() > kAcquirePacketBlocksMax) return std::nullopt;
  const std::vector<std::byte> request = EncodeAcquireRequest(fingerprint, can_read_gpu, hashes);
  if (request.size() > packet_bytes_max_) return std::nullopt;
  {
    absl::MutexLock lock(&mutex_);
    // Somebody else waits for the daemon here; gRPC takes calls side by side.
    if (is_requesting_) return std::nullopt;
    is_requesting_ = true;
  }
  absl::StatusOr<std::optional<AcquireReply>> reply = RequestAcquire(request, timeout);
  absl::MutexLock lock(&mutex_);
  is_requesting_ = false;
  return reply;
}

absl::StatusOr<std::optional<AcquireReply>> MemorySession::RequestAcquire(
    std::span<const std::byte> request, absl::Duration timeout) {
  if (is_lost()) return Lost("the session has ended");
  const ssize_t sent = send(fd_.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent != static_cast<ssize_t>(request.size())) {
    // Nothing was sent: packets go whole or not at all.
    if (errno == EAGAIN || errno == EMSGSIZE || errno == ENOBUFS) return std::nullopt;
    return Lost(std::strerror(errno));
  }
  reply_.resize(kAcquireReplyBytesMax);
  absl::Status answered = WaitForReply(fd_.get(), timeout);
  ssize_t got = 0;
  if (answered.ok()) got = recv(fd_.get(), reply_.data(), reply_.size(), MSG_DONTWAIT | MSG_TRUNC);
  std::optional<AcquireReply> reply;
  if (got > 0 && got <= static_cast<ssize_t>(reply_.size()))
    reply = DecodeAcquireReply(std::span(reply_).first(static_cast<size_t>(got)));
  if (!reply.has_value()) {
    GiveUp();
    RETURN_IF_ERROR(answered);
    return got == 0 ? Lost("it closed the memory socket")
                    : absl::UnavailableError("a malformed reply on the memory socket");
  }
  if (reply->code != MemoryReplyCode::kOk) return std::nullopt;
  return reply;
}

bool MemorySession::TryRelease(uint64_t lease) {
  const MemoryRelease release{.lease = lease};
  return send(fd_.get(), &release, sizeof release, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof release);
}

std::shared_ptr<const MappedSlab> MemorySession::CachedSlab(uint32_t tier, uint32_t slab) {
  absl::MutexLock lock(&mutex_);
  auto it = slabs_.find({tier, slab});
  return it == slabs_.end() ? nullptr : it->second;
}

absl::StatusOr<std::shared_ptr<const MappedSlab>> MemorySession::Slab(uint32_t tier, uint32_t slab,
                                                                      absl::Duration timeout) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto it = slabs_.find({tier, slab}); it != slabs_.end()) return it->second;
    if (!mutex_.AwaitWithTimeout(absl::Condition(this, &MemorySession::IsIdle), timeout)) {
      return absl::DeadlineExceededError("waiting for another slab to be mapped");
    }
    if (auto it = slabs_.find({tier, slab}); it != slabs_.end()) return it->second;
    if (is_lost()) return Lost("the session has ended");
    if (timeout <= absl::ZeroDuration())
      return absl::DeadlineExceededError("no time to map the slab");
    is_requesting_ = true;
  }
  // An answer that is not waited for ends the session: what ends the caller's patience must not.
  absl::StatusOr<std::shared_ptr<const MappedSlab>> mapped =
      RequestSlab(tier, slab, std::max(timeout, kReplyTimeoutMin));
  absl::MutexLock lock(&mutex_);
  is_requesting_ = false;
  if (mapped.ok()) slabs_[{tier, slab}] = *mapped;
  return mapped;
}

absl::StatusOr<std::shared_ptr<const MappedSlab>> MemorySession::RequestSlab(
    uint32_t tier, uint32_t slab, absl::Duration timeout) {
  RETURN_IF_ERROR(Send(
      fd_.get(), MemoryRequest{.kind = MemoryRequestKind::kMapSlab, .tier = tier, .slab = slab}));
  absl::StatusOr<Reply> reply = Receive(fd_.get(), timeout);
  if (!reply.ok()) {
    GiveUp();
    return reply.status();
  }
  if (reply->message.code == MemoryReplyCode::kNoSuchSlab)
    return absl::AbortedError("the slab has been given back");
  if (reply->message.code != MemoryReplyCode::kOk || reply->num_descriptors != 2) {
    return absl::UnavailableError(absl::StrCat("the memory socket answered with code ",
                                               static_cast<uint32_t>(reply->message.code)));
  }
  return MappedSlab::Map(std::move(reply->descriptors[0]), std::move(reply->descriptors[1]),
                         reply->message.slab_bytes, access_, device_slabs_);
}

}  // namespace kvstore::client
