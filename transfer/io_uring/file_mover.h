// Moves whole slots between files and host memory: O_DIRECT reads and writes on one progress thread
// with a deep queue.
//
// The progress thread sleeps when there is nothing to do. It also runs what belongs to an operation
// and must not run on the core thread: `prepare` before it is started, `check` after its bytes have
// moved (checksums), and `done`.
//
// Memory: the buffers of an operation belong to the mover from Submit() until `done` runs. `done`
// runs only after the kernel has let go of them, also for operations whose deadline has passed: a
// late one is cancelled, and then waited for.
// Threads: Submit(), RegisterMemory(), UnregisterMemory(), stats() are thread-safe and never
// block on I/O. `done`, `prepare`, `check` run on the progress thread; they must not call Stop()
// and should take microseconds to a millisecond.
// Limits: at most options.inflight_max operations between Submit() and `done`; beyond that
// Submit() returns ResourceExhausted. At most options.queue_depth of them are in the kernel.
// Errors: in `done`: DeadlineExceeded; Unavailable, the device or file system failed
// (error_number says how); what prepare or check returned. An operation is OK only if every byte
// moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/region.h"
#include "kvstore/base/strong_id.h"
#include "transfer/io_uring/io_backend.h"

namespace kvstore::transfer {

using FileId = StrongId<struct FileIdTag, uint32_t>;

struct FileResult {
  absl::Status status;
  // errno of the failing system call; ETIME: the device had it at its deadline; 0: the device was
  // not asked (a deadline that passed in our own queue), or did what it was asked.
  int error_number = 0;
};

struct FileOperation {
  using Prepare = absl::AnyInvocable<absl::Status(FileOperation&)>;
  using Check = absl::AnyInvocable<absl::Status()>;
  using CheckPiece = absl::AnyInvocable<absl::Status(uint64_t moved_bytes)>;
  using Done = absl::AnyInvocable<void(FileResult)>;

  FileDirection direction = FileDirection::kRead;
  FileId file{};
  uint64_t offset = 0;
  MutableRegion buffer{};  // for a write only read from; aligned as O_DIRECT wants it: 4096 for
                           // address, bytes and offset
  MutableRegion tail{};  // optional second buffer, moved from or to the bytes that follow `buffer`
                         // in the file
  absl::Time deadline = absl::InfiniteFuture();
  // Optional; before the first start. May put other memory into `buffer` and `tail`, of the same
  // sizes. ResourceExhausted: not now, it is asked again; other errors end the operation.
  Prepare prepare{};
  Check check{};  // optional; after all bytes moved: an error is the operation's result
  // Of a read: moves `tail` first and then `buffer` in pieces of so many bytes, each of them behind
  // whatever else waits by then. So operations that begin together advance together, and what
  // arrived can be used early. A multiple of 4096; 0: everything at once.
  uint64_t piece_bytes = 0;
  // With piece_bytes, in place of `check`: after the tail (0) and after each piece, with the leading
  // bytes of `buffer` that are there. An error is the operation's result; nothing more is moved.
  CheckPiece check_piece{};
  Done done{};

  uint64_t bytes() const { return buffer.bytes + tail.bytes; }
};

struct FileMoverStats {
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t operations = 0;
  uint64_t in_flight = 0;              // submitted and not done
  uint64_t registered_operations = 0;  // moved through registered memory
  uint64_t continued_operations = 0;   // short transfers that were carried on
  uint64_t retried_operations = 0;     // EAGAIN, EINTR
  uint64_t deadline_misses = 0;
  uint64_t errors = 0;             // of the device, short reads at the end of a file included
  uint64_t stale_completions = 0;  // results that belonged to no operation; dropped
  uint64_t registered_bytes = 0;   // memory registered now
  uint64_t refused_bytes = 0;      // memory whose registration failed: moved unregistered
};

class FileMover {
 public:
  enum class BackendKind : uint8_t { kAuto, kIoUring, kThreads };
  struct Options {
    uint32_t queue_depth = 64;     // 1 to 4096
    uint32_t inflight_max = 1024;  // queue_depth to 65536
    BackendKind backend = BackendKind::kAuto;
    uint32_t num_threads = 16;  // of the pread/pwrite backend
    // Of operations in pieces that advance together; later ones begin when these end, so that not
    // all of them end late. One is always let in. Here: half a second at 2 GB/s.
    uint64_t pieces_bytes_max = uint64_t{1} << 30;
    uint32_t registered_files_max = 64;
    uint32_t registered_buffers_max = 1024;  // of at most 1 GiB each
    std::string thread_name = "kv-file";     // at most 15 characters
    // Tests put a scripted backend here; runs on the progress thread. Overrides `backend`.
    std::function<absl::StatusOr<std::unique_ptr<IoBackend>>()> make_backend{};
    // Simulation: no thread. The progress loop's turns run as tasks of this executor, on its
    // thread, which is then the only one that may call; virtual time moves between them. The
    // executor outlives the mover.
    Executor* turns_on = nullptr;
    absl::Status Validate() const;
  };

  // `clock` outlives the mover. Errors: InvalidArgument; Unavailable, options.backend is kIoUring
  // and the kernel refuses it.
  static absl::StatusOr<std::unique_ptr<FileMover>> Create(Options options, const Clock& clock);
  ~FileMover();  // Stop()
  FileMover(const FileMover&) = delete;
  FileMover& operator=(const FileMover&) = delete;

  // Makes `fd` known; the caller keeps it open until Stop(). Blocks shortly: start-up only.
  FileId AddFile(int fd);

  // Registers memory, in the background, so that operations inside it cost less. What cannot be
  // registered (locked-memory limit, full table, backend without registration) is moved all the
  // same; degraded() and stats() say so.
  void RegisterMemory(MutableRegion region);
  // The same region as given before. When it returns no new operation uses the registration.
  // Requires: no operation is in flight in the region. Unknown regions are ignored.
  void UnregisterMemory(MutableRegion region);

  // On OK `operation.done` runs exactly once, later, on the progress thread. Otherwise it never
  // runs. Errors: ResourceExhausted, inflight_max; FailedPrecondition, stopped; InvalidArgument,
  // unknown file or no bytes.
  [[nodiscard]] absl::Status Submit(FileOperation operation);

  // Refuses new operations, waits until all in flight are done, joins the thread. Idempotent. Not
  // from the progress thread.
  void Stop();

  FileMoverStats stats() const;
  BackendKind backend() const;  // kIoUring or kThreads: the one that runs
  // What runs otherwise than it could, and why; empty if nothing does.
  std::string degraded() const;

 private:
  class Impl;
  explicit FileMover(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore::transfer
