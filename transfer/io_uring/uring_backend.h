// IoBackend on io_uring: registered files and buffers, batched submission, sleeps in the kernel
// when idle.
//
// Confined to the thread that called Create() (the ring is single-issuer where the kernel offers
// it), except Wake().
#pragma once

#include <liburing.h>

#include <memory>
#include <vector>

#include "transfer/io_uring/io_backend.h"

namespace kvstore::transfer {

class UringBackend final : public IoBackend {
 public:
  struct Options {
    uint32_t depth = 64;
    uint32_t registered_files_max = 64;
    uint32_t registered_buffers_max = 1024;
  };
  // Errors: Unavailable, with the errno's text, where io_uring is forbidden or absent (EPERM,
  // ENOSYS) or out of memory.
  static absl::StatusOr<std::unique_ptr<UringBackend>> Create(const Options& options);
  ~UringBackend() override;

  bool Start(const IoRequest& request) override;
  void Cancel(uint64_t tag) override;
  void Flush() override;
  void Wait(absl::Duration timeout, std::vector<IoResult>& results) override;
  void Wake() override;
  int RegisterFile(int fd) override;
  absl::StatusOr<int> RegisterBuffer(MutableRegion region) override;
  void UnregisterBuffer(int index) override;

 private:
  UringBackend() = default;
  absl::Status Init(const Options& options);
  io_uring_sqe* NextSqe();
  void ArmWake();
  void Collect(std::vector<IoResult>& results);

  io_uring ring_{};
  bool has_ring_ = false;
  int wake_fd_ = -1;
  uint64_t wake_count_ = 0;  // the kernel writes it when the wake read completes
  bool wake_armed_ = false;
  std::vector<bool> files_;    // [registered_files_max] in use; empty: no table
  std::vector<bool> buffers_;  // [registered_buffers_max] in use; empty: no table
};

}  // namespace kvstore::transfer
