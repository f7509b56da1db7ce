// Inside of FileMover: the progress thread and its queue. Not for other folders.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "transfer/io_uring/file_mover.h"
#include "transfer/io_uring/operation_table.h"
#include "transfer/io_uring/registered_memory.h"

namespace kvstore::transfer {

class FileMover::Impl {
 public:
  Impl(Options options, const Clock& clock);
  ~Impl() {
    Stop();
    *is_alive_ = false;
  }
  // Starts the thread; its backend's error.
  absl::Status Start();

  FileId AddFile(int fd) ABSL_LOCKS_EXCLUDED(mutex_);
  void RegisterMemory(MutableRegion region) ABSL_LOCKS_EXCLUDED(mutex_);
  void UnregisterMemory(MutableRegion region) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Submit(FileOperation operation) ABSL_LOCKS_EXCLUDED(mutex_);
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  FileMoverStats stats() const ABSL_LOCKS_EXCLUDED(mutex_);
  BackendKind backend() const { return backend_kind_; }
  std::string degraded() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Incoming {
    FileOperation operation;
    int buffer_index = -1;
  };
  struct File {
    int fd = -1;
    int index = -1;
  };
  struct AddFileRequest {
    int fd = -1;
    absl::Notification* done = nullptr;
  };

  // Progress thread.
  void Run(absl::Status* start_status, absl::Notification* started);
  bool Turn();  // false: stopped and nothing is left
  absl::StatusOr<std::unique_ptr<IoBackend>> MakeBackend();
  bool TakeIncoming() ABSL_LOCKS_EXCLUDED(mutex_);  // false: stopped and nothing is left
  void RegisterPieces(MutableRegion region) ABSL_LOCKS_EXCLUDED(mutex_);
  void StartWaiting();
  absl::Status Prepare(ActiveOperation& active);
  bool StartOne(uint32_t index);  // false: the backend has no room
  void ExpireDeadlines();
  absl::Duration SleepTime();
  void HandleResult(const IoResult& result);
  void Retry(uint32_t index);
  void FinishArrived();
  void Queue(uint32_t index);
  void LetPiecesIn();
  void FinishPiece(uint32_t index, ActiveOperation& active);
  void Finish(uint32_t index, FileResult result) ABSL_LOCKS_EXCLUDED(mutex_);
  std::string Describe(const ActiveOperation& active) const;
  void Wake();
  // In place of the thread, with options_.turns_on.
  void PostTurn(absl::Time when);
  void RunPostedTurn(absl::Time when);

  const Options options_;
  const Clock& clock_;
  BackendKind backend_kind_ = BackendKind::kIoUring;
  std::unique_ptr<IoBackend>
      backend_;  // made on the progress thread, destroyed after it was joined

  // Progress thread only.
  OperationTable table_;
  std::vector<File> files_;
  std::deque<uint64_t> waiting_;  // tags; those of operations that ended meanwhile are skipped
  std::deque<uint64_t> later_;    // as waiting_: in pieces, and over options_.pieces_bytes_max
  uint64_t pieces_bytes_ = 0;     // of operations in pieces that have begun
  std::deque<uint32_t> arrived_;
  absl::btree_set<std::pair<absl::Time, uint32_t>> deadlines_;
  uint32_t in_kernel_ = 0;
  bool has_more_incoming_ = false;
  bool saw_stop_ = false;
  absl::Time pause_until_ = absl::InfinitePast();  // after EAGAIN
  std::vector<IoResult> results_;
  absl::Time next_turn_ = absl::InfiniteFuture();                  // posted, with options_.turns_on
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);  // for turns that outlive us

  mutable absl::Mutex mutex_;
  std::deque<Incoming> incoming_ ABSL_GUARDED_BY(mutex_);
  std::deque<AddFileRequest> new_files_ ABSL_GUARDED_BY(mutex_);
  std::deque<MutableRegion> to_register_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> to_unregister_ ABSL_GUARDED_BY(mutex_);
  const std::byte* registering_ ABSL_GUARDED_BY(mutex_) = nullptr;
  RegisteredMemory registered_ ABSL_GUARDED_BY(mutex_);
  uint32_t num_files_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_asleep_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  FileMoverStats stats_ ABSL_GUARDED_BY(mutex_);
  std::string backend_note_ ABSL_GUARDED_BY(mutex_);
  std::string memory_note_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace kvstore::transfer
