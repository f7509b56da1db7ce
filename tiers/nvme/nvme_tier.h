// The durable tier: pages in preallocated extents, moved with O_DIRECT, found again through an
// index.
//
// A slab is an extent; slabs are dealt out over the directories in turn. A Write() is OK when the
// page is in its slot and its index record is in the log (page cache): both survive a killed
// process. After a power loss a page may be missing, never wrong: every slot ends in a trailer with
// identity, generation and checksums, and a Read() accepts nothing else. FORMAT.md has the bytes.
//
// Threads: as Tier says. Besides the core thread: one progress thread a directory (it hashes) and
// one index thread (RocksDB, fdatasync). Open() blocks and belongs to start-up; Stop() waits for
// the device.
// Memory: host memory given to Write() and Read() is aligned to 4096. RegisterMemory() makes it
// cheaper.
// Recovery: while Recover() runs, reads are served, and Reserve() is Unavailable: slots that no
// record has claimed yet are not known to be free. A directory without pages serves at once.
// Failure: two breakers (breaker.h), both of which the tier probes by itself until they close.
// The device's: it answers nothing, or with errors only: kFailed, reads and writes are refused at
// once. The one for writing: a full or failing file system, a failing or hanging index:
// kReadOnly. A stalled device delays `done` beyond its deadline until the kernel gives the memory
// back; the core thread never waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/breaker.h"
#include "tiers/completion_queue.h"
#include "tiers/nvme/answer_watch.h"
#include "tiers/nvme/data_directory.h"
#include "tiers/nvme/nvme_options.h"
#include "tiers/nvme/page_encryption.h"
#include "tiers/nvme/page_notes.h"
#include "tiers/nvme/record_index.h"
#include "tiers/nvme/slot_buffers.h"
#include "tiers/slot_allocator.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

// What recovery made of the records it found.
struct RecoveryCounts {
  uint64_t recovered = 0;      // kept by the store
  uint64_t refused = 0;        // not kept by the store
  uint64_t undecodable = 0;    // not a record of this version
  uint64_t out_of_range = 0;   // place outside the extents, or of another slot size
  uint64_t duplicates = 0;     // slot already claimed
  uint64_t unknown_pools = 0;  // nobody opened a pool for them
  uint64_t unreadable = 0;     // encrypted and should not be, the reverse, or the key is gone
};

class NvmeTier final : public DurableTier {
 public:
  // `core` and `clock` outlive the tier. Errors: what DataDirectory, RecordIndex, PlanLayout say.
  static absl::StatusOr<std::unique_ptr<NvmeTier>> Open(NvmeOptions options, Executor& core,
                                                        const Clock& clock);
  ~NvmeTier() override;  // Stop()

  // Memory that pages will be read into and written from, as it comes and goes. Optional; see
  // FileMover::RegisterMemory. Thread-safe.
  void RegisterMemory(MutableRegion region);
  void UnregisterMemory(MutableRegion region);

  TierKind kind() const override { return TierKind::kNvme; }
  absl::Status OpenPool(PoolId pool, const PoolSpec& spec) override;
  absl::StatusOr<PageId> Reserve(PoolId pool) override;
  void Release(PageId page) override;
  void Quarantine(PageId page) override;
  void CloseSlab(uint32_t slab) override { allocator_.Close(slab); }
  void ReopenSlab(uint32_t slab) override { allocator_.Reopen(slab); }
  void Write(PageId page, const PageIdentity& identity, ConstRegion src, absl::Time deadline,
             Done done) override;
  void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
            Done done) override;
  void ReadBySlices(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                    OnSlices on_slices, Done done) override;
  uint64_t capacity_bytes() const override { return allocator_.capacity_bytes(); }
  uint64_t FreeSlots(PoolId pool) const override { return allocator_.FreeSlots(pool); }
  size_t inflight_max() const override { return options_.inflight_max; }
  TierStats stats() const override;
  TierState state() const override;
  BreakerState breaker() const override { return device_breaker_.state(); }
  std::string degraded() const override;
  absl::Status CheckInvariants() const override;
  void Stop() override;
  void Recover(RecoveryHooks hooks) override;
  void SaveMetadata(std::string key, std::string value, Done done) override;
  void NameNamespace(const Fingerprint& fingerprint, std::string_view name) override;
  void EraseEpochs(const Fingerprint& fingerprint, uint64_t epoch, Done done) override;

  // From now on the newest of these encrypts. Errors: as PageEncryption::ReplaceKeys();
  // FailedPrecondition, nothing is encrypted.
  absl::Status ReplaceKeys(std::shared_ptr<const MasterKeys> master_keys);

  const RecoveryCounts& recovery() const { return recovery_; }
  const NvmeLayout& layout() const { return layout_; }
  uint64_t index_disk_bytes() const { return index_->disk_bytes(); }
  // "io_uring" or "pread/pwrite".
  std::string backend_name() const;

 private:
  struct Device {
    std::unique_ptr<DataDirectory> directory;
    std::unique_ptr<transfer::FileMover> mover;
    transfer::FileId file;
    std::unique_ptr<AnswerWatch> watch = std::make_unique<AnswerWatch>();
  };
  struct Place {
    Device* device;
    uint64_t offset;
  };
  enum class Recovery : uint8_t { kPending, kRunning, kFinished };
  class TailBuffers;

  NvmeTier(NvmeOptions options, NvmeLayout layout, uint64_t generation_base, Executor& core,
           const Clock& clock);
  Place PlaceOf(PageId page);
  absl::Status CheckTransfer(PageId page, const PageIdentity& identity, const std::byte* memory,
                             size_t bytes) const;
  void Fail(Done done, absl::Status status);
  transfer::FileOperation PlainWrite(MutableRegion src, const PageIdentity& identity,
                                     uint64_t generation);
  // Of a read or write operation: hands it to the device. Cannot be refused.
  void Submit(Device& device, transfer::FileOperation operation);
  // Null `on_slices`: at once.
  void StartRead(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
                 OnSlices on_slices, Done done);
  void ReadInPieces(transfer::FileOperation* read, const PageIdentity& expect, const PagePlace& at,
                    AnswerWatch* watch, OnSlices on_slices);
  void FinishWrite(uint64_t bytes, transfer::FileResult result, Done done);
  void FinishRead(uint64_t bytes, transfer::FileResult result, Done done);
  void ForgetRecord(PageId page);
  // nvme_encryption.cc
  // Null: pages of the namespace are not encrypted. Errors: those of PageEncryption::FindOrMake.
  absl::StatusOr<std::shared_ptr<const PageCipher>> CipherToWrite(const PageIdentity& identity);
  // As above. Errors: DataLoss, the secret of its epoch is gone.
  absl::StatusOr<std::shared_ptr<const PageCipher>> CipherToRead(const PageIdentity& expect) const;
  transfer::FileOperation EncryptedWrite(std::shared_ptr<const PageCipher> cipher,
                                         MutableRegion src, const PageIdentity& identity,
                                         const PagePlace& place);
  void SaveSecrets(Done done);
  bool MayClaim(const Record& record) const;

  // nvme_health.cc
  // What the outcome of an operation says about the device. May change the status of a failed read.
  void JudgeRead(transfer::FileResult& result);
  void JudgeWrite(const transfer::FileResult& result);
  void RecordAnswer();
  void RecordFault(const absl::Status& status);
  void ArmWatch();
  void LookAtWatches();
  void GiveUpDevice(std::string reason);
  void ScheduleDeviceProbe();
  void StartDeviceProbe();
  void FinishDeviceProbe(absl::Status status);
  void EnterReadOnly(std::string reason);
  void ScheduleWriteProbe();
  void FinishWriteProbe(absl::Status status);
  void KeepForLater(std::string key, std::string value);
  void SaveWhatWasKept();
  std::string WhyNotServing() const;
  void RecoverBatch(std::vector<Record> records);
  // The page, if the record may be used; counts and drops it otherwise.
  bool Claim(const Record& record, RecoveredPage& recovered);
  void FinishRecovery(absl::Status status);

  const NvmeOptions options_;
  const NvmeLayout layout_;
  // Of generations on disk. Those of PageIds begin anew with each run: the index keeps 48 bits.
  const uint64_t generation_base_;
  Executor& core_;
  const Clock& clock_;
  SlotAllocator allocator_;
  PageNotes notes_;
  std::shared_ptr<TailBuffers> tails_;  // shared with operations in flight
  std::shared_ptr<CompletionQueue> completions_;
  std::vector<Device> devices_;
  std::unique_ptr<RecordIndex> index_;
  std::unique_ptr<PageEncryption> encryption_;  // null: nothing is encrypted
  std::shared_ptr<SlotBuffers> slot_buffers_;   // shared with operations in flight
  // Which version of the secrets is on its way to disk, and which has arrived there.
  uint64_t queued_secrets_ = 0;
  std::shared_ptr<std::atomic<uint64_t>> saved_secrets_ =
      std::make_shared<std::atomic<uint64_t>>(0);
  RecoveryHooks hooks_;
  Recovery recovery_state_ = Recovery::kPending;
  RecoveryCounts recovery_;
  Breaker device_breaker_;
  Breaker write_breaker_;
  AnswerWatch index_watch_;
  bool is_watch_armed_ = false;
  uint64_t device_probes_ = 0;
  std::map<std::string, std::string> unsaved_metadata_;  // bounded: the store's namespaces
  std::string start_note_;
  TierStats stats_;
  bool is_stopped_ = false;
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);  // for timers that outlive us
};

}  // namespace kvstore::tiers
