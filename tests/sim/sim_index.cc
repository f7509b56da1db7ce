#include "tests/sim/sim_index.h"

#include <algorithm>

#include "tiers/nvme/record_format.h"

namespace kvstore::sim {
namespace {

constexpr size_t kBatch = 8;
constexpr size_t kScanBatch = 5;
constexpr size_t kScanBatchesOut = 2;

}  // namespace

void RecordLog::Apply(const std::vector<Change>& batch, std::map<std::string, std::string>* to) {
  for (const auto& [key, value] : batch) {
    if (value) {
      (*to)[key] = *value;
    } else {
      to->erase(key);
    }
  }
}

void RecordLog::Append(std::vector<Change> batch) {
  Apply(batch, &now_);
  unsynced_.push_back(std::move(batch));
}

void RecordLog::Sync() {
  for (const auto& batch : unsynced_) Apply(batch, &synced_);
  unsynced_.clear();
}

void RecordLog::LosePower(Random& random) {
  unsynced_.resize(random.Below(static_cast<uint32_t>(unsynced_.size()) + 1));
  Sync();
  now_ = synced_;
}

void RecordLog::Damage(Random& random) {
  Sync();
  auto from = synced_.lower_bound(std::string(1, tiers::kRecordKeyPrefix));
  const auto count = static_cast<uint32_t>(std::distance(from, synced_.end()));
  std::advance(from, random.Below(count + 1));
  synced_.erase(from, synced_.end());
  now_ = synced_;
}

SimIndex::SimIndex(RecordLog& log, const Faults& faults, Executor& executor, const Clock& clock,
                   Failpoints& failpoints, Random& random)
    : RecordIndex({}),
      log_(log),
      faults_(faults),
      executor_(executor),
      clock_(clock),
      failpoints_(failpoints),
      random_(random),
      was_empty_(log.records().lower_bound(std::string(1, tiers::kRecordKeyPrefix)) ==
                 log.records().end()) {}

SimIndex::~SimIndex() {
  (void)SimIndex::Stop();
  *is_alive_ = false;
}

void SimIndex::Put(std::string key, std::string value, Check check, Done done) {
  failpoints_.Pass(Failpoint::kBeforeRecord);
  Enqueue({Kind::kPut, std::move(key), std::move(value), std::move(done), std::move(check)});
}

void SimIndex::Delete(std::string key) {
  failpoints_.Pass(Failpoint::kMidEvict);
  Enqueue({Kind::kDelete, std::move(key), {}, {}, {}});
}

void SimIndex::PutMetadata(std::string key, std::string value, Done done) {
  Enqueue(
      {Kind::kMetadata, tiers::kMetadataKeyPrefix + key, std::move(value), std::move(done), {}});
}

void SimIndex::Probe(Done done) { Enqueue({Kind::kProbe, {}, {}, std::move(done), {}}); }

void SimIndex::Scan(ScanHooks hooks) {
  scan_.emplace(std::move(hooks));
  PostRun();
}

void SimIndex::AcknowledgeScan() {
  --batches_out_;
  PostRun();
}

void SimIndex::Enqueue(Work work) {
  queue_.push_back(std::move(work));
  PostRun();
}

void SimIndex::PostRun() {
  if (is_run_posted_ || is_stopped_) return;
  is_run_posted_ = true;
  absl::Duration delay = random_.UpTo(absl::Microseconds(200));
  if (random_.Chance(faults_.slow_batch)) delay = random_.UpTo(absl::Seconds(1));
  executor_.PostAt(clock_.Now() + delay, [this, alive = is_alive_] {
    if (!*alive || is_stopped_) return;
    is_run_posted_ = false;
    Run();
  });
}

void SimIndex::Run() {
  if (!queue_.empty() && queue_.front().kind == Kind::kProbe) {
    Work probe = std::move(queue_.front());
    queue_.pop_front();
    RunProbe(std::move(probe));
  } else if (!queue_.empty()) {
    RunBatch();
  }
  const bool may_scan = scan_ && !is_broken_ && batches_out_ < kScanBatchesOut;
  if (may_scan) StepScan();
  if (!queue_.empty() || (scan_ && !is_broken_ && batches_out_ < kScanBatchesOut)) PostRun();
}

void SimIndex::RunBatch() {
  std::vector<Work> batch;
  while (!queue_.empty() && batch.size() < kBatch && queue_.front().kind != Kind::kProbe) {
    Work work = std::move(queue_.front());
    queue_.pop_front();
    const absl::Status checked = work.check ? work.check() : absl::OkStatus();
    if (checked.ok()) {
      batch.push_back(std::move(work));
    } else {
      work.done(checked);
    }
  }
  if (batch.empty()) return;
  if (!is_broken_ && random_.Chance(faults_.failed_batch)) is_broken_ = true;
  if (is_broken_) return Finish(batch, absl::UnavailableError("simulated: index is broken"));
  std::vector<RecordLog::Change> changes;
  bool has_put = false, has_metadata = false;
  for (const Work& work : batch) {
    const bool is_removal =
        work.kind == Kind::kDelete || (work.kind == Kind::kMetadata && work.value.empty());
    has_put |= work.kind == Kind::kPut;
    has_metadata |= work.kind == Kind::kMetadata;
    changes.emplace_back(work.key, is_removal ? std::nullopt : std::optional(work.value));
  }
  if (has_metadata) failpoints_.Pass(Failpoint::kMidMetadata);
  if (!failpoints_.is_off()) {
    log_.Append(std::move(changes));
    if (has_metadata) log_.Sync();
  }
  if (has_put) failpoints_.Pass(Failpoint::kAfterRecord);
  Finish(batch, failpoints_.is_off() ? absl::UnavailableError("off") : absl::OkStatus());
}

void SimIndex::Finish(std::vector<Work>& batch, const absl::Status& status) {
  for (Work& work : batch) {
    if (!status.ok() && work.kind == Kind::kDelete) {
      kept_deletes_.push_back(std::move(work.key));
    } else if (work.done) {
      work.done(status);
    }
  }
}

void SimIndex::RunProbe(Work work) {
  if (is_broken_ && random_.OneIn(2)) return work.done(absl::UnavailableError("still broken"));
  is_broken_ = false;
  std::vector<RecordLog::Change> changes;
  for (std::string& key : kept_deletes_) changes.emplace_back(std::move(key), std::nullopt);
  kept_deletes_.clear();
  if (!failpoints_.is_off()) {
    log_.Append(std::move(changes));
    log_.Sync();
  }
  work.done(absl::OkStatus());
}

void SimIndex::StepScan() {
  std::vector<tiers::Record> records;
  auto it = log_.records().lower_bound(scan_position_);
  for (; it != log_.records().end() && records.size() < kScanBatch; ++it) {
    if (it->first[0] == tiers::kMetadataKeyPrefix) {
      scan_->on_metadata(it->first.substr(1), it->second);
    } else if (auto record = tiers::DecodeRecord(it->first, it->second)) {
      records.push_back(*std::move(record));
    }
    scan_position_ = it->first + '\0';
  }
  const bool is_more = it != log_.records().end();
  if (!records.empty()) {
    ++batches_out_;
    scan_->on_records(std::move(records));
    failpoints_.Pass(Failpoint::kMidRecovery);
  }
  if (is_more) return;
  auto on_finished = std::move(scan_->on_finished);
  scan_.reset();
  on_finished(absl::OkStatus());
}

absl::Status SimIndex::Stop() {
  if (std::exchange(is_stopped_, true)) return absl::OkStatus();
  while (!queue_.empty()) Run();
  if (scan_) {
    auto on_finished = std::move(scan_->on_finished);
    scan_.reset();
    on_finished(absl::CancelledError("stopped"));
  }
  if (failpoints_.is_off()) return absl::OkStatus();
  std::vector<RecordLog::Change> discarded;
  for (const auto& [key, value] : log_.records()) {
    const auto record = tiers::DecodeRecord(key, value);
    if (record && record->generation >= discard_from_) discarded.emplace_back(key, std::nullopt);
  }
  log_.Append(std::move(discarded));
  log_.Sync();
  return absl::OkStatus();
}

}  // namespace kvstore::sim
