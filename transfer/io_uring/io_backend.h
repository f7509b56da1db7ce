// The kernel side of a FileMover: starts reads and writes and reports their raw results. Three
// implementations: UringBackend, ThreadBackend (pread/pwrite, where io_uring is forbidden), and the
// scripted one of the tests.
//
// Threads: confined to the progress thread that created it, except Wake(), which is thread-safe.
// Limits:  the caller keeps at most `depth` requests between Start() and their result.
// Memory:  buffers belong to the kernel from Start() until the result is reported, also after
// Cancel().
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/region.h"

namespace kvstore::transfer {

enum class FileDirection : uint8_t { kRead, kWrite };

struct IoRequest {
  uint64_t tag = 0;  // comes back in the result; below IoBackend::kTagMax
  FileDirection direction = FileDirection::kRead;
  int fd = -1;
  int file_index = -1;  // in the table of registered files; -1: use fd
  int buffer_index =
      -1;  // in the table of registered buffers, only with one part; -1: unregistered
  const iovec* parts = nullptr;  // stays valid until the result
  int num_parts = 0;
  uint64_t offset = 0;
};

struct IoResult {
  uint64_t tag = 0;
  int32_t result = 0;  // bytes moved, or a negative errno
};

class IoBackend {
 public:
  static constexpr uint64_t kTagMax = uint64_t{1} << 63;

  virtual ~IoBackend() = default;

  // Queues one request; Flush() or Wait() hands it to the kernel. False: no room now, try again
  // after Wait().
  [[nodiscard]] virtual bool Start(const IoRequest& request) = 0;
  // Asks to end a started request early. Its result still comes, through Wait(): -ECANCELED,
  // -EINTR, or what it became.
  virtual void Cancel(uint64_t tag) = 0;
  virtual void Flush() = 0;
  // Flushes, then sleeps until a result, Wake(), or `timeout` (zero: does not sleep). Appends
  // results.
  virtual void Wait(absl::Duration timeout, std::vector<IoResult>& results) = 0;
  // Thread-safe. Ends the present or the next Wait().
  virtual void Wake() = 0;

  // Index for IoRequest::file_index, or -1 where the backend has no such table or it is full.
  virtual int RegisterFile(int fd) = 0;
  // Index for IoRequest::buffer_index. Errors: Unimplemented, this backend has none;
  // ResourceExhausted, locked-memory limit or full table.
  virtual absl::StatusOr<int> RegisterBuffer(MutableRegion region) = 0;
  virtual void UnregisterBuffer(int index) = 0;
};

}  // namespace kvstore::transfer
