#include "tiers/nvme/record_database.h"

#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <cstdarg>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// RocksDB's own log file would be one more thing to fail: in Debian's build, which has assertions,
// the second message after a write error to it aborts the process. Errors reach us as statuses.
class SilentLogger final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::Options DatabaseOptions(uint64_t index_bytes) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.paranoid_checks = true;
  // Hashes do not compress; records are small and read only by scans, so no cache and no filters.
  options.compression = rocksdb::kNoCompression;
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;
  table.block_size = 64 << 10;
  table.format_version = 5;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  // Buffers, logs and level 0 together stay below a third of index_bytes: 2 buffers' worth of log,
  // and 4 to 8 files of one buffer each in level 0.
  options.write_buffer_size = std::clamp<uint64_t>(index_bytes / 32, 128 << 10, 16 * kMiB);
  options.max_write_buffer_number = 3;
  options.max_total_wal_size = 2 * options.write_buffer_size;
  options.level0_file_num_compaction_trigger = 4;
  options.level0_slowdown_writes_trigger = 8;
  options.target_file_size_base = std::max<uint64_t>(2 * options.write_buffer_size, kMiB);
  options.max_bytes_for_level_base = 4 * options.write_buffer_size;
  options.level_compaction_dynamic_level_bytes = true;
  options.max_manifest_file_size = kMiB;
  options.info_log = std::make_shared<SilentLogger>();
  options.stats_dump_period_sec = 0;  // nothing runs when idle
  options.stats_persist_period_sec = 0;
  options.max_open_files = 16;  // the daemon must live with 64 descriptors
  options.max_file_opening_threads = 1;
  options.max_background_jobs = 2;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  options.avoid_flush_during_shutdown = true;
  // We close and reopen instead: see record_index.h, "Failure".
  options.max_bgerror_resume_count = 0;
  return options;
}

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool IsDamage(const rocksdb::Status& status) {
  if (status.IsCorruption() || status.IsInvalidArgument()) return true;
  if (!status.IsIOError()) return false;
  const std::string text = status.ToString();  // a file of the database is gone or cut short
  return Contains(text, "No such file") || Contains(text, "too short") ||
         Contains(text, "While read") || Contains(text, "While pread");
}

}  // namespace

absl::Status IndexStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat("index: ", status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(text);
  if (status.IsNotSupported()) return absl::FailedPreconditionError(text);
  return absl::UnavailableError(text);
}

absl::StatusOr<std::unique_ptr<rocksdb::DB>> OpenRecordDatabase(const std::string& path,
                                                                uint64_t index_bytes,
                                                                bool& is_damaged) {
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(DatabaseOptions(index_bytes), path, &db);
  is_damaged = IsDamage(status);
  if (!status.ok()) return IndexStatus(status);
  return std::unique_ptr<rocksdb::DB>(db);
}

rocksdb::ReadOptions ScanOptions() {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  options.readahead_size = 2 * kMiB;
  options.total_order_seek = true;
  return options;
}

}  // namespace kvstore::tiers
