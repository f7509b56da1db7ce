#include "kvstore/store/quota_record.h"

#include <algorithm>
#include <cstring>

namespace kvstore::store {
namespace {

constexpr std::string_view kMagic = "kvqr1";

}  // namespace

std::string QuotaRecord::Encode() const {
  std::string out(kMagic);
  out.append(reinterpret_cast<const char*>(bytes.data()), sizeof bytes);
  return out;
}

absl::StatusOr<QuotaRecord> QuotaRecord::Decode(std::string_view record) {
  if (!record.starts_with(kMagic)) return absl::DataLossError("quota record: unknown encoding");
  record.remove_prefix(kMagic.size());
  if (record.empty() || record.size() % sizeof(uint64_t) != 0)
    return absl::DataLossError("quota record: cut off");
  QuotaRecord quotas;
  std::memcpy(quotas.bytes.data(), record.data(), std::min(record.size(), sizeof quotas.bytes));
  return quotas;
}

}  // namespace kvstore::store
