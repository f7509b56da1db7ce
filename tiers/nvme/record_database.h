// How the index's RocksDB is configured, opened and told apart from a damaged one.
#pragma once

#include <rocksdb/db.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvstore::tiers {

absl::Status IndexStatus(const rocksdb::Status& status);

// Opens or creates. `index_bytes` bounds what it keeps on disk, given at most index_bytes / 2 /
// kIndexBytesPerRecord records. Sets `is_damaged` when the error is about the content, not about
// the file system.
absl::StatusOr<std::unique_ptr<rocksdb::DB>> OpenRecordDatabase(const std::string& path,
                                                                uint64_t index_bytes,
                                                                bool& is_damaged);

// For scans: reads ahead, keeps nothing in the cache, verifies block checksums.
rocksdb::ReadOptions ScanOptions();

}  // namespace kvstore::tiers
