// The record index of a simulated NVMe tier: the contract of tiers/nvme/record_index.h over a
// write-ahead log that a power loss cuts off at some batch behind the last sync.
//
// Confined to the simulation's thread.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tests/sim/failpoints.h"
#include "tests/sim/sim_random.h"
#include "tiers/nvme/record_index.h"

namespace kvstore::sim {

// What is on disk of an index; outlives the process.
class RecordLog {
 public:
  using Change = std::pair<std::string, std::optional<std::string>>;  // key, value or removal
  void Append(std::vector<Change> batch);
  void Sync();
  // A prefix of what was not synced is left.
  void LosePower(Random& random);
  // Records behind a random one, or all, are forgotten, as after damage.
  void Damage(Random& random);
  const std::map<std::string, std::string>& records() const { return now_; }

 private:
  static void Apply(const std::vector<Change>& batch, std::map<std::string, std::string>* to);
  std::map<std::string, std::string> now_, synced_;
  std::vector<std::vector<Change>> unsynced_;
};

class SimIndex final : public tiers::RecordIndex {
 public:
  struct Faults {
    double failed_batch = 0;  // the database is broken until a probe
    double slow_batch = 0;    // up to 1 s
  };
  SimIndex(RecordLog& log, const Faults& faults, Executor& executor, const Clock& clock,
           Failpoints& failpoints, Random& random);
  ~SimIndex() override;

  void Put(std::string key, std::string value, Check check, Done done) override;
  void Delete(std::string key) override;
  void PutMetadata(std::string key, std::string value, Done done) override;
  void Scan(ScanHooks hooks) override;
  void AcknowledgeScan() override;
  void Probe(Done done) override;
  void DiscardFrom(uint64_t generation) override { discard_from_ = generation; }
  absl::Status Stop() override;
  bool was_empty() const override { return was_empty_; }

 private:
  enum class Kind { kPut, kDelete, kMetadata, kProbe };
  struct Work {
    Kind kind;
    std::string key;
    std::string value;
    Done done;
    Check check;
  };
  void Enqueue(Work work);
  void PostRun();
  void Run();
  void RunBatch();
  void RunProbe(Work work);
  void StepScan();
  void Finish(std::vector<Work>& batch, const absl::Status& status);

  RecordLog& log_;
  const Faults& faults_;  // may change
  Executor& executor_;
  const Clock& clock_;
  Failpoints& failpoints_;
  Random& random_;
  const bool was_empty_;
  std::deque<Work> queue_;
  std::vector<std::string> kept_deletes_;
  std::optional<ScanHooks> scan_;
  std::string scan_position_;
  size_t batches_out_ = 0;
  bool is_broken_ = false;
  bool is_run_posted_ = false;
  bool is_stopped_ = false;
  uint64_t discard_from_ = UINT64_MAX;
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);  // for tasks that outlive us
};

}  // namespace kvstore::sim
