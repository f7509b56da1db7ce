// Metadata that the NVMe index keeps for the store: namespace specs and records, quotas.
//
//   input: which u8, the record
//
// Promises: what is restored encodes to the record that was read; a refused record leaves no
// namespace and no tenant; specs that are accepted are valid.
#include "kvstore/base/namespace_spec.h"
#include "kvstore/store/namespace_table.h"
#include "kvstore/store/quota_record.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore {
namespace {

void OnSpec(const std::string& bytes) {
  const absl::StatusOr<NamespaceSpec> spec = NamespaceSpec::Decode(bytes);
  if (!spec.ok()) {
    REQUIRE(absl::IsDataLoss(spec.status()));
    return;
  }
  REQUIRE(spec->Validate().ok() && spec->Encode() == bytes);
}

void OnNamespace(const std::string& record) {
  store::TenantTable tenants(4, {});
  store::NamespaceTable table(4, tenants);
  uint64_t recorded = 0;
  const absl::StatusOr<store::Namespace*> ns = table.Restore(record, &recorded);
  if (!ns.ok()) {
    REQUIRE(absl::IsDataLoss(ns.status()));
    REQUIRE(table.size() == 0);
    return;
  }
  REQUIRE(table.size() == 1 && table.Find((*ns)->fingerprint) == *ns);
  REQUIRE((*ns)->fingerprint == (*ns)->spec.ComputeFingerprint());
  REQUIRE(store::NamespaceTable::EncodeRecord(**ns) == record && recorded == (*ns)->epoch);
  // A second time changes nothing, and a clear makes it newer.
  REQUIRE(*table.Restore(record, &recorded) == *ns && table.size() == 1);
  const uint64_t epoch = (*ns)->epoch;
  REQUIRE(table.Advance(*ns).ok() && (*ns)->epoch > epoch);
}

void OnQuota(const std::string& record) {
  const absl::StatusOr<store::QuotaRecord> quota = store::QuotaRecord::Decode(record);
  if (!quota.ok()) {
    REQUIRE(absl::IsDataLoss(quota.status()));
    return;
  }
  const std::string encoded = quota->Encode();
  const absl::StatusOr<store::QuotaRecord> again = store::QuotaRecord::Decode(encoded);
  REQUIRE(again.ok() && again->bytes == quota->bytes);
  if (record.size() == encoded.size()) REQUIRE(encoded == record);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  const auto which = input.Take<uint8_t>();
  const std::string record = fuzz::Copy(input.TakeRest());
  if (which % 3 == 0) OnSpec(record);
  if (which % 3 == 1) OnNamespace(record);
  if (which % 3 == 2) OnQuota(record);
  return 0;
}
