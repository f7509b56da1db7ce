// What this machine can do at best: the plain operation that a figure is compared with. Measured
// between the measurements of the figure, so that noise hits both alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::bench {

// Memory of our own for sets that no cache holds: anonymous, touched, huge pages where they come.
// Aligned to 4096.
class SetMemory {
 public:
  // Errors: ResourceExhausted.
  static absl::StatusOr<SetMemory> Make(size_t bytes);
  SetMemory(SetMemory&& other) noexcept;
  SetMemory& operator=(SetMemory&& other) = delete;
  ~SetMemory();

  std::span<std::byte> bytes() const { return {data_, size_}; }
  std::span<std::byte> piece(size_t index, size_t piece_bytes) const {
    return {data_ + index * piece_bytes, piece_bytes};
  }

 private:
  SetMemory(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

// Seconds of copying the pieces of `order` one by one with memcpy.
double CopySeconds(const SetMemory& to, const SetMemory& from, size_t piece_bytes,
                   std::span<const uint32_t> order);
// Seconds of reading all bytes once, adding them up.
double ReadSeconds(std::span<const std::byte> bytes);
// Seconds of one SHA-256 over `bytes`.
double Sha256Seconds(std::span<const std::byte> bytes);

// A process that answers every message on a Unix stream socket with `reply_bytes`: what any
// protocol between two processes pays at least. Ends when its owner goes.
class EchoProcess {
 public:
  // Forks: to be made before the program has threads. Errors: Unavailable.
  static absl::StatusOr<EchoProcess> Start();
  EchoProcess(EchoProcess&&) = default;
  EchoProcess& operator=(EchoProcess&& other) = delete;
  ~EchoProcess();

  // Seconds of sending `request_bytes` and receiving `reply_bytes`. Each at most 16 MiB.
  absl::StatusOr<double> RoundTripSeconds(uint32_t request_bytes, uint32_t reply_bytes);

 private:
  explicit EchoProcess(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

}  // namespace kvstore::bench
