// The index of the NVMe tier: RocksDB behind one background thread, so that neither the core nor a
// progress thread ever waits for it.
//
// Order: what is queued is applied in the order in which it was queued, in batches. A slot's
// Delete() is queued before the slot is handed out again, so it reaches the log before the next
// Put() of it. Durability: Put() is done when the record is in the log in the page cache (survives
// a killed process); PutMetadata() when it is on stable storage. Failure: when a batch cannot be
// written (disk full, I/O error) its puts fail and the database is closed: Debian's RocksDB 7.8 is
// built with assertions and aborts when a log that failed is written to, synced or resumed. Further
// puts fail at once, deletes are kept, a scan waits, until Probe() could open it again.
//
// Virtual for the simulation only (tests/sim), which keeps its records in a log of its own.
//
// Threads: Put(), Delete(), PutMetadata(), Probe(), AcknowledgeScan() are thread-safe; all
// callbacks run on the index thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "tiers/nvme/record_format.h"

namespace rocksdb {
class DB;
class Iterator;
}  // namespace rocksdb

namespace kvstore::tiers {

class RecordIndex {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;
  using Check = absl::AnyInvocable<absl::Status()>;
  struct Options {
    std::string path;        // a directory, made by Open()
    uint64_t bytes_max = 0;  // sizes the write buffers and logs
    size_t batch_records = 1024;
    size_t scan_batches_max = 4;  // batches of a scan that were not acknowledged yet
  };

  // Blocks; start-up. A damaged index does not prevent a start: it is moved aside to
  // `path`.damaged (replacing one from before) and note() says so.
  // Errors: Unavailable, the file system fails (full, no descriptors); FailedPrecondition, the path
  // is not a directory of ours, or a newer RocksDB wrote it.
  static absl::StatusOr<std::unique_ptr<RecordIndex>> Open(Options options);
  virtual ~RecordIndex();  // Stop()

  // `check` runs on the index thread before the record is written: an error is passed to `done` and
  // there is no record. Errors of the index itself are Unavailable.
  virtual void Put(std::string key, std::string value, Check check, Done done)
      ABSL_LOCKS_EXCLUDED(mutex_);
  virtual void Delete(std::string key) ABSL_LOCKS_EXCLUDED(mutex_);
  // `key` without prefix; an empty value removes it.
  virtual void PutMetadata(std::string key, std::string value, Done done)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Reads everything back in key order, in the background, between the writes. on_finished is OK
  // also when damage was met: what is readable was delivered, the rest is forgotten, note() says
  // so; Cancelled after Stop(). Once.
  struct ScanHooks {
    std::function<void(std::string key, std::string value)> on_metadata;
    // Each batch is to be answered by AcknowledgeScan().
    std::function<void(std::vector<Record>)> on_records;
    absl::AnyInvocable<void(absl::Status)> on_finished;
  };
  virtual void Scan(ScanHooks hooks) ABSL_LOCKS_EXCLUDED(mutex_);
  virtual void AcknowledgeScan() ABSL_LOCKS_EXCLUDED(mutex_);

  // Runs `done(OK)` on the index thread, behind what is queued and before what comes after.
  void Run(Done done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Tries whether writing works (again): reopens the database and writes what was kept.
  virtual void Probe(Done done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Removes, at the end of Stop(), all records of this generation and above: their pages could not
  // be brought to stable storage. For Stop() callers only, before it.
  virtual void DiscardFrom(uint64_t generation) ABSL_LOCKS_EXCLUDED(mutex_);

  // Writes what is queued, syncs, closes, joins. Idempotent.
  virtual absl::Status Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  virtual bool was_empty() const { return was_empty_; }      // at Open()
  uint64_t undecodable() const ABSL_LOCKS_EXCLUDED(mutex_);  // records dropped by the scan
  uint64_t disk_bytes() const;                               // of all files of the index
  std::string note() const ABSL_LOCKS_EXCLUDED(mutex_);      // damage found; empty if none

 protected:
  explicit RecordIndex(Options options);

 private:
  enum class Kind : uint8_t { kPut, kDelete, kMetadata, kProbe, kRun };
  struct Change {
    Kind kind;
    std::string key;
    std::string value;
    Done done;
    Check check{};
  };

  absl::Status OpenDatabase();
  void RunThread() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayScan() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Apply(std::vector<Change> changes) ABSL_LOCKS_EXCLUDED(mutex_);
  static void RunChecks(std::vector<Change>& changes);
  void ApplyBatch(std::vector<Change> changes) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunProbe(Done done) ABSL_LOCKS_EXCLUDED(mutex_);
  void StepScan() ABSL_LOCKS_EXCLUDED(mutex_);
  void FinishScan(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Reopen() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Discard(uint64_t generation);
  absl::Status RebuildWithout(const std::string& damage) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Close() ABSL_LOCKS_EXCLUDED(mutex_);
  void AddNote(const std::string& text) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  bool was_empty_ = true;

  // Index thread only, after Open().
  std::unique_ptr<rocksdb::DB> db_;  // null after a failure
  std::unique_ptr<rocksdb::Iterator> iterator_;
  absl::Status failure_;       // why db_ is null
  std::string scan_position_;  // where a scan goes on: the first key not seen yet
  std::vector<Change> kept_deletes_;
  absl::Status close_status_;

  mutable absl::Mutex mutex_;
  std::deque<Change> queue_ ABSL_GUARDED_BY(mutex_);
  ScanHooks scan_hooks_ ABSL_GUARDED_BY(mutex_);
  bool is_scanning_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_broken_ ABSL_GUARDED_BY(mutex_) = false;  // as db_ == nullptr
  size_t scan_batches_out_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t undecodable_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t discard_from_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  std::string note_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvstore::tiers
