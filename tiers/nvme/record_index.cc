#include "tiers/nvme/record_index.h"

#include <pthread.h>
#include <rocksdb/db.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/record_database.h"

namespace kvstore::tiers {
namespace {

constexpr char kProbeKey[] = "P";

std::string StdString(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }
std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

}  // namespace

RecordIndex::RecordIndex(Options options) : options_(std::move(options)) {}

RecordIndex::~RecordIndex() { (void)Stop(); }

absl::StatusOr<std::unique_ptr<RecordIndex>> RecordIndex::Open(Options options) {
  std::unique_ptr<RecordIndex> index(new RecordIndex(std::move(options)));
  RETURN_IF_ERROR(index->OpenDatabase());
  index->thread_ = std::thread([raw = index.get()] { raw->RunThread(); });
  pthread_setname_np(index->thread_.native_handle(), "kv-index");
  return index;
}

absl::Status RecordIndex::OpenDatabase() {
  const std::string& path = options_.path;
  struct stat found {};
  if (mkdir(path.c_str(), 0700) != 0) {
    if (errno != EEXIST) {
      return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
    }
    if (lstat(path.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)) {
      return absl::FailedPreconditionError(absl::StrCat(path, ": not a directory"));
    }
  }
  bool is_damaged = false;
  auto db = OpenRecordDatabase(path, options_.bytes_max, is_damaged);
  if (!db.ok() && is_damaged) {
    std::error_code error;
    std::filesystem::remove_all(path + ".damaged", error);
    if (rename(path.c_str(), (path + ".damaged").c_str()) != 0 || mkdir(path.c_str(), 0700) != 0) {
      return absl::UnavailableError(
          absl::StrCat(path, " is damaged and cannot be moved aside: ", std::strerror(errno)));
    }
    AddNote(absl::StrCat("the index was damaged (", std::string(db.status().message()),
                         "), moved to ", path, ".damaged; started empty"));
    db = OpenRecordDatabase(path, options_.bytes_max, is_damaged);
  }
  RETURN_IF_ERROR(db.status());
  db_ = *std::move(db);
  std::unique_ptr<rocksdb::Iterator> first(db_->NewIterator(ScanOptions()));
  first->Seek(rocksdb::Slice(&kRecordKeyPrefix, 1));
  // Damage counts as content: the scan will find it.
  was_empty_ = !first->Valid() && first->status().ok();
  return absl::OkStatus();
}

void RecordIndex::Put(std::string key, std::string value, Check check, Done done) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(
      {Kind::kPut, std::move(key), std::move(value), std::move(done), std::move(check)});
}

void RecordIndex::Delete(std::string key) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back({Kind::kDelete, std::move(key), {}, {}});
}

void RecordIndex::PutMetadata(std::string key, std::string value, Done done) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(
      {Kind::kMetadata, kMetadataKeyPrefix + std::move(key), std::move(value), std::move(done)});
}

void RecordIndex::Probe(Done done) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back({Kind::kProbe, {}, {}, std::move(done)});
}

void RecordIndex::Run(Done done) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back({Kind::kRun, {}, {}, std::move(done)});
}

void RecordIndex::Scan(ScanHooks hooks) {
  absl::MutexLock lock(&mutex_);
  scan_hooks_ = std::move(hooks);
  is_scanning_ = true;
}

void RecordIndex::AcknowledgeScan() {
  absl::MutexLock lock(&mutex_);
  --scan_batches_out_;
}

void RecordIndex::DiscardFrom(uint64_t generation) {
  absl::MutexLock lock(&mutex_);
  discard_from_ = generation;
}

absl::Status RecordIndex::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  return close_status_;
}

uint64_t RecordIndex::undecodable() const {
  absl::MutexLock lock(&mutex_);
  return undecodable_;
}

uint64_t RecordIndex::disk_bytes() const {
  uint64_t bytes = 0;
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(options_.path, error)) {
    const uint64_t file_bytes = file.file_size(error);
    if (!error) bytes += file_bytes;
  }
  return bytes;
}

std::string RecordIndex::note() const {
  absl::MutexLock lock(&mutex_);
  return note_;
}

void RecordIndex::AddNote(const std::string& text) {
  absl::MutexLock lock(&mutex_);
  absl::StrAppend(&note_, note_.empty() ? "" : "; ", text);
}

bool RecordIndex::MayScan() const {
  return is_scanning_ &&
         (is_stopping_ || (!is_broken_ && scan_batches_out_ < options_.scan_batches_max));
}

bool RecordIndex::HasWork() const { return is_stopping_ || !queue_.empty() || MayScan(); }

void RecordIndex::RunThread() {
  for (;;) {
    std::vector<Change> changes;
    bool may_scan = false;
    bool is_stopping = false;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &RecordIndex::HasWork));
      const size_t count = std::min(queue_.size(), options_.batch_records);
      const auto end = queue_.begin() + static_cast<ptrdiff_t>(count);
      changes.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
      queue_.erase(queue_.begin(), end);
      may_scan = MayScan();
      is_stopping = is_stopping_;
    }
    if (is_stopping && changes.empty() && !may_scan) break;
    if (!changes.empty()) Apply(std::move(changes));
    if (may_scan && is_stopping) {
      FinishScan(absl::CancelledError("the tier is stopping"));
    } else if (may_scan) {
      StepScan();
    }
  }
  close_status_ = Close();
}

// Cuts at what is not part of a batch.
void RecordIndex::Apply(std::vector<Change> changes) {
  std::vector<Change> batch;
  for (Change& change : changes) {
    if (change.kind == Kind::kProbe) {
      ApplyBatch(std::exchange(batch, {}));
      RunProbe(std::move(change.done));
    } else if (change.kind == Kind::kRun) {
      ApplyBatch(std::exchange(batch, {}));
      change.done(absl::OkStatus());
    } else {
      batch.push_back(std::move(change));
    }
  }
  ApplyBatch(std::move(batch));
}

// Drops, and reports, those whose check fails.
void RecordIndex::RunChecks(std::vector<Change>& changes) {
  std::erase_if(changes, [](Change& change) {
    absl::Status status = change.check ? change.check() : absl::OkStatus();
    if (status.ok()) return false;
    change.done(std::move(status));
    return true;
  });
}

void RecordIndex::ApplyBatch(std::vector<Change> changes) {
  RunChecks(changes);
  if (changes.empty()) return;
  absl::Status status = failure_;
  if (db_ != nullptr) {
    rocksdb::WriteBatch batch;
    rocksdb::WriteOptions write_options;
    for (const Change& change : changes) {
      const bool is_removal =
          change.kind == Kind::kDelete || (change.kind == Kind::kMetadata && change.value.empty());
      if (is_removal) {
        batch.Delete(change.key);
      } else {
        batch.Put(change.key, change.value);
      }
      if (change.kind == Kind::kMetadata) write_options.sync = true;
    }
    status = IndexStatus(db_->Write(write_options, &batch));
    if (!status.ok()) {
      // Not DataLoss, whatever RocksDB found: that would blame the page.
      status = absl::UnavailableError(std::string(status.message()));
      Fail(status);
    }
  }
  for (Change& change : changes) {
    if (!status.ok() && change.kind == Kind::kDelete) {
      kept_deletes_.push_back(std::move(change));
    } else if (change.done) {
      change.done(status);
    }
  }
}

void RecordIndex::Fail(const absl::Status& status) {
  iterator_.reset();
  db_.reset();
  failure_ = status;
  absl::MutexLock lock(&mutex_);
  is_broken_ = true;
}

absl::Status RecordIndex::Reopen() {
  bool is_damaged = false;
  auto db = OpenRecordDatabase(options_.path, options_.bytes_max, is_damaged);
  RETURN_IF_ERROR(db.status());
  db_ = *std::move(db);
  failure_ = absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  is_broken_ = false;
  return absl::OkStatus();
}

void RecordIndex::RunProbe(Done done) {
  absl::Status status = db_ == nullptr ? Reopen() : absl::OkStatus();
  if (status.ok()) {
    rocksdb::WriteBatch batch;
    for (const Change& change : kept_deletes_) batch.Delete(change.key);
    batch.Put(kProbeKey, "");
    batch.Delete(kProbeKey);
    rocksdb::WriteOptions write_options;
    write_options.sync = true;
    status = IndexStatus(db_->Write(write_options, &batch));
    if (!status.ok()) Fail(status);
  }
  if (status.ok()) kept_deletes_.clear();
  done(std::move(status));
}

void RecordIndex::StepScan() {
  if (iterator_ == nullptr) {
    iterator_.reset(db_->NewIterator(ScanOptions()));
    iterator_->Seek(scan_position_);
  }
  std::vector<Record> records;
  std::vector<Change> undecodable;
  std::function<void(std::string, std::string)> on_metadata;
  std::function<void(std::vector<Record>)> on_records;
  {
    absl::MutexLock lock(&mutex_);
    on_metadata = scan_hooks_.on_metadata;
    on_records = scan_hooks_.on_records;
  }
  size_t steps = 0;
  for (; iterator_->Valid() && steps < options_.batch_records; iterator_->Next(), ++steps) {
    const rocksdb::Slice key = iterator_->key();
    if (key.size() > 0 && key[0] == kMetadataKeyPrefix) {
      on_metadata(StdString(key).substr(1), StdString(iterator_->value()));
    } else if (auto record = DecodeRecord(View(key), View(iterator_->value()))) {
      records.push_back(*std::move(record));
    } else if (View(key) != kProbeKey) {
      undecodable.push_back({Kind::kDelete, StdString(key), {}, {}});
    }
  }
  const bool is_more = iterator_->Valid();
  if (is_more) scan_position_ = StdString(iterator_->key());
  const absl::Status end = IndexStatus(iterator_->status());
  {
    absl::MutexLock lock(&mutex_);
    undecodable_ += undecodable.size();
    if (!records.empty()) ++scan_batches_out_;
  }
  if (!records.empty()) on_records(std::move(records));
  ApplyBatch(std::move(undecodable));
  if (is_more) return;
  iterator_.reset();
  FinishScan(end.ok() ? end : RebuildWithout(std::string(end.message())));
}

void RecordIndex::FinishScan(absl::Status status) {
  iterator_.reset();
  absl::AnyInvocable<void(absl::Status)> on_finished;
  {
    absl::MutexLock lock(&mutex_);
    is_scanning_ = false;
    on_finished = std::move(scan_hooks_.on_finished);
    scan_hooks_ = {};
  }
  if (on_finished) on_finished(std::move(status));
}

// What lies behind unreadable blocks is lost; what was readable moves into a fresh database, since
// a damaged one would fail at its next compaction.
absl::Status RecordIndex::RebuildWithout(const std::string& damage) {
  const std::string fresh_path = options_.path + ".new";
  std::error_code error;
  std::filesystem::remove_all(fresh_path, error);
  bool is_damaged = false;
  {
    ASSIGN_OR_RETURN(auto fresh, OpenRecordDatabase(fresh_path, options_.bytes_max, is_damaged));
    std::unique_ptr<rocksdb::Iterator> from(db_->NewIterator(ScanOptions()));
    rocksdb::WriteBatch batch;
    for (from->SeekToFirst(); from->Valid(); from->Next()) {
      batch.Put(from->key(), from->value());
      if (batch.Count() < 1000) continue;
      RETURN_IF_ERROR(IndexStatus(fresh->Write({}, &batch)));
      batch.Clear();
    }
    rocksdb::WriteOptions write_options;
    write_options.sync = true;
    RETURN_IF_ERROR(IndexStatus(fresh->Write(write_options, &batch)));
  }
  Fail(absl::UnavailableError("the index is being rebuilt"));
  std::filesystem::remove_all(options_.path + ".damaged", error);
  std::filesystem::rename(options_.path, options_.path + ".damaged", error);
  if (!error) std::filesystem::rename(fresh_path, options_.path, error);
  RETURN_IF_ERROR(Reopen());
  AddNote(absl::StrCat("the index was damaged (", damage, "): pages behind the damage are ",
                       "forgotten; the damaged index is in ", options_.path, ".damaged"));
  return absl::OkStatus();
}

absl::Status RecordIndex::Discard(uint64_t generation) {
  std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(ScanOptions()));
  for (it->Seek(rocksdb::Slice(&kRecordKeyPrefix, 1)); it->Valid(); it->Next()) {
    const auto record = DecodeRecord(View(it->key()), View(it->value()));
    if (!record || record->generation < generation) continue;
    RETURN_IF_ERROR(IndexStatus(db_->Delete({}, it->key())));
  }
  return IndexStatus(it->status());
}

absl::Status RecordIndex::Close() {
  if (db_ == nullptr) return failure_;
  uint64_t discard_from;
  {
    absl::MutexLock lock(&mutex_);
    discard_from = discard_from_;
  }
  absl::Status status;
  if (discard_from != UINT64_MAX) status = Discard(discard_from);
  if (status.ok()) status = IndexStatus(db_->SyncWAL());
  db_.reset();
  return status;
}

}  // namespace kvstore::tiers
