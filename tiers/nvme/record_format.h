// Keys and values of the index. On disk; see FORMAT.md before changing anything.
//
// Keys sort so that one iteration meets all metadata first, then the records of one namespace epoch
// together, and of one prefix parents before children.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kvstore/base/page_trailer.h"

namespace kvstore::tiers {

inline constexpr char kMetadataKeyPrefix = 'M';
inline constexpr char kRecordKeyPrefix = 'R';

// Where a page's record is in the index: its namespace epoch, position in the prefix, and place.
// The hash is in the value: a page is found by its slot at Release(), and 16 bytes a page of memory
// suffice for that.
struct RecordKey {
  Fingerprint fingerprint;
  uint64_t epoch = 0;
  uint32_t block_index = 0;
  uint32_t slab = 0;
  uint32_t slot = 0;
  friend bool operator==(const RecordKey&, const RecordKey&) = default;
};
std::string EncodeRecordKey(const RecordKey& key);

struct Record {
  PageIdentity identity;
  uint32_t slab = 0;
  uint32_t slot = 0;
  uint64_t generation = 0;  // in the trailer on disk
  uint32_t key_id = 0;      // of the master key that the page is encrypted under; 0: it is not
};
std::string EncodeRecordValue(const PageIdentity& identity, uint64_t generation,
                              uint32_t key_id = 0);
// nullopt: not a record of this version, or of a shape that no namespace can have.
std::optional<Record> DecodeRecord(std::string_view key, std::string_view value);

}  // namespace kvstore::tiers
