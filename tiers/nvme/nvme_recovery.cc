// How the NVMe tier starts: directories, index, and reading back what is stored.
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/nvme_tier.h"

namespace kvstore::tiers {
namespace {

// That the directories are those of one store, in the order in which they were first used.
absl::Status CheckTogether(const std::vector<std::unique_ptr<DataDirectory>>& directories) {
  const bool is_new = !directories[0]->superblock().has_value();
  for (size_t i = 0; i < directories.size(); ++i) {
    const auto& superblock = directories[i]->superblock();
    const auto& first = directories[0]->superblock();
    if (superblock.has_value() == is_new) {
      return absl::FailedPreconditionError(absl::StrCat(
          "nvme directories ", directories[0]->path(), " and ", directories[i]->path(),
          ": one was used before and the other was not; give the same directories as before, or "
          "empty all of them to lose their pages"));
    }
    if (is_new) continue;
    if (superblock->store_id != first->store_id || superblock->directory_index != i ||
        superblock->directory_count != directories.size()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "nvme directory ", directories[i]->path(), ": was directory ",
          superblock->directory_index + 1, " of ", superblock->directory_count,
          superblock->store_id != first->store_id ? " of another store" : "", ", not ", i + 1,
          " of ", directories.size(), "; give the same directories in the same order as before"));
    }
  }
  return absl::OkStatus();
}

// Null: nothing is to be encrypted.
absl::StatusOr<std::unique_ptr<PageEncryption>> OpenEncryption(const NvmeOptions& options,
                                                               DataDirectory& directory) {
  if (options.encrypt.empty()) return nullptr;
  ASSIGN_OR_RETURN(auto master_keys, MasterKeys::Read(options.key_file));
  ASSIGN_OR_RETURN(const std::string secrets, directory.LoadSecrets());
  return PageEncryption::Create(options.encrypt, std::move(master_keys), secrets);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NvmeTier>> NvmeTier::Open(NvmeOptions options, Executor& core,
                                                         const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  std::vector<std::unique_ptr<DataDirectory>> directories;
  for (const std::string& path : options.dirs) {
    ASSIGN_OR_RETURN(auto directory, DataDirectory::Open(path));
    directories.push_back(std::move(directory));
  }
  RETURN_IF_ERROR(CheckTogether(directories));
  Superblock superblock = directories[0]->superblock().value_or(Superblock{});
  ASSIGN_OR_RETURN(const NvmeLayout layout, PlanLayout(options, superblock.extent_bytes));
  ASSIGN_OR_RETURN(auto encryption, OpenEncryption(options, *directories[0]));

  if (superblock.extent_bytes == 0 &&
      getrandom(superblock.store_id.data(), superblock.store_id.size(), 0) !=
          static_cast<ssize_t>(superblock.store_id.size())) {
    return absl::UnavailableError("nvme: no random bytes for the store's id");
  }
  for (const auto& directory : directories) {
    if (directory->superblock()) {
      superblock.version = std::max(superblock.version, directory->superblock()->version);
      superblock.opens = std::max(superblock.opens, directory->superblock()->opens);
    }
  }
  const bool is_new = superblock.extent_bytes == 0;
  ++superblock.opens;
  if (encryption != nullptr) superblock.version = kNvmeFormatEncrypted;
  superblock.extent_bytes = layout.extent_bytes;
  superblock.directory_count = static_cast<uint32_t>(directories.size());
  // Before anything is written with its generations.
  for (size_t i = 0; i < directories.size(); ++i) {
    superblock.directory_index = static_cast<uint32_t>(i);
    absl::Status status = directories[i]->SaveSuperblock(superblock);
    if (status.ok()) {
      status = directories[i]->PreparePages(layout.extents_per_dir * layout.extent_bytes);
    }
    if (status.ok()) continue;
    // A smaller capacity, tried next, may mean smaller extents.
    for (size_t j = 0; is_new && j <= i; ++j) directories[j]->Abandon();
    return status;
  }

  // Before any page: the checks of its keys are in it.
  if (encryption != nullptr) RETURN_IF_ERROR(directories[0]->SaveSecrets(encryption->Encode()));
  std::unique_ptr<NvmeTier> tier(
      new NvmeTier(std::move(options), layout, GenerationBase(superblock.opens), core, clock));
  const NvmeSimulation simulation = tier->options_.simulation.value_or(NvmeSimulation{});
  ASSIGN_OR_RETURN(tier->index_, simulation.make_index
                                     ? simulation.make_index()
                                     : RecordIndex::Open({.path = directories[0]->index_path(),
                                                          .bytes_max = layout.index_bytes}));
  tier->encryption_ = std::move(encryption);
  if (tier->encryption_ != nullptr) {
    tier->queued_secrets_ = tier->encryption_->version();
    tier->saved_secrets_->store(tier->queued_secrets_);
  }
  if (tier->index_->was_empty()) tier->recovery_state_ = Recovery::kFinished;
  for (auto& directory : directories) {
    if (!directory->is_direct()) {
      tier->start_note_ = absl::StrCat("no O_DIRECT in ", directory->path(),
                                       ": its pages go through the page cache");
    }
    ASSIGN_OR_RETURN(auto mover,
                     transfer::FileMover::Create({.queue_depth = tier->options_.queue_depth,
                                                  .inflight_max = tier->options_.inflight_max + 1,
                                                  .backend = tier->options_.backend,
                                                  .thread_name = "kv-nvme",
                                                  .make_backend = simulation.make_backend,
                                                  .turns_on = simulation.executor},
                                                 clock));
    const transfer::FileId file = mover->AddFile(directory->pages_fd());
    tier->devices_.push_back(
        {.directory = std::move(directory), .mover = std::move(mover), .file = file});
  }
  return tier;
}

void NvmeTier::Recover(RecoveryHooks hooks) {
  hooks_ = std::move(hooks);
  recovery_state_ = Recovery::kRunning;
  index_->Scan({.on_metadata =
                    [this](std::string key, std::string value) {
                      completions_->Post([this, key = std::move(key), value = std::move(value)] {
                        if (hooks_.on_metadata) hooks_.on_metadata(key, value);
                      });
                    },
                .on_records =
                    [this](std::vector<Record> records) {
                      completions_->Post([this, records = std::move(records)]() mutable {
                        RecoverBatch(std::move(records));
                        index_->AcknowledgeScan();
                      });
                    },
                .on_finished =
                    [this](absl::Status status) {
                      completions_->Post([this, status] { FinishRecovery(status); });
                    }});
}

bool NvmeTier::Claim(const Record& record, RecoveredPage& recovered) {
  const PageIdentity& identity = record.identity;
  const PoolId pool = hooks_.pool_of(identity);
  if (!MayClaim(record)) {
    ++recovery_.unreadable;
    return false;
  }
  if (record.slab >= allocator_.capacity_bytes() / layout_.extent_bytes) {
    ++recovery_.out_of_range;
    return false;
  }
  absl::StatusOr<PageId> page = allocator_.ReserveAt(pool, record.slab, record.slot);
  if (!page.ok()) {
    uint64_t& count = absl::IsNotFound(page.status())        ? recovery_.unknown_pools
                      : absl::IsAlreadyExists(page.status()) ? recovery_.duplicates
                                                             : recovery_.out_of_range;
    ++count;
    return false;
  }
  if (allocator_.SlotBytes(page->slab) != identity.shape.slot_bytes()) {
    ++recovery_.out_of_range;
    allocator_.Release(*page);
    return false;
  }
  notes_.Set(*page, identity, record.generation);
  recovered = {*page, identity};
  return true;
}

void NvmeTier::RecoverBatch(std::vector<Record> records) {
  if (is_stopped_) return;
  std::vector<RecoveredPage> pages;
  pages.reserve(records.size());
  for (const Record& record : records) {
    RecoveredPage page;
    if (Claim(record, page)) {
      pages.push_back(page);
    } else {
      const PageIdentity& identity = record.identity;
      index_->Delete(EncodeRecordKey(
          {identity.fingerprint, identity.epoch, identity.block_index, record.slab, record.slot}));
    }
  }
  const std::vector<bool> keeps = hooks_.on_pages(pages);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (i < keeps.size() && keeps[i]) {
      ++recovery_.recovered;
    } else {
      ++recovery_.refused;
      Release(pages[i].page);
    }
  }
}

void NvmeTier::FinishRecovery(absl::Status status) {
  recovery_.undecodable = index_->undecodable();
  recovery_state_ = Recovery::kFinished;
  auto on_finished = std::move(hooks_.on_finished);
  hooks_ = {};
  if (on_finished) on_finished(std::move(status));
}

}  // namespace kvstore::tiers
