// Which namespaces there are: by fingerprint, by a tenant's name, and by the id of each epoch.
//
// A namespace has one present epoch. Clear() gives it a new one under a new NamespaceId; the old id
// stays valid for blocks that are still leased or not yet swept, and is reused when the last of
// them is gone.
//
// Confined to the core thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/base/strong_id.h"
#include "kvstore/store/tenant_table.h"

namespace kvstore::store {

struct Namespace {
  std::string name;
  Fingerprint fingerprint;
  NamespaceSpec spec;
  PoolId pool;
  uint64_t epoch = 1;
  NamespaceId id;        // of the present epoch
  bool is_open = false;  // by a client since start; else only found on disk
  bool is_kept = false;  // by the durable tier, which has it or writes it before any page
};

// One epoch of a namespace.
struct Epoch {
  const Namespace* ns = nullptr;  // null: the id is free
  uint64_t epoch = 0;
  bool is_current = false;
};

class NamespaceTable {
 public:
  NamespaceTable(size_t namespaces_max, TenantTable& tenants)
      : namespaces_max_(namespaces_max), tenants_(tenants) {}

  // Errors: AlreadyExists, the tenant's `name` means another spec; ResourceExhausted.
  absl::StatusOr<Namespace*> Open(const NamespaceSpec& spec, std::string name);
  // What a durable tier kept (EncodeRecord). Namespaces that are open already keep their state,
  // with the higher epoch. `recorded_epoch`: the one in the record. Errors: DataLoss.
  absl::StatusOr<Namespace*> Restore(std::string_view record, uint64_t* recorded_epoch);
  static std::string EncodeRecord(const Namespace& ns);

  const Namespace* Find(const Fingerprint& fingerprint) const;
  Namespace* Find(const Fingerprint& fingerprint);
  const Namespace* FindByName(std::string_view tenant, std::string_view name) const;
  // Null for an id that is free.
  const Epoch* FindEpoch(NamespaceId id) const;
  const Epoch& epoch(NamespaceId id) const { return epochs_[id.value()]; }

  // Gives `ns` a new epoch and id. Errors: ResourceExhausted, too many old epochs wait to be swept.
  absl::Status Advance(Namespace* ns);
  // Frees the id of an old epoch. Requires: no node refers to it.
  void Forget(NamespaceId id);
  std::vector<NamespaceId> OldEpochs() const;
  // In order of fingerprint.
  std::vector<const Namespace*> All() const;
  size_t size() const { return by_fingerprint_.size(); }

 private:
  absl::StatusOr<Namespace*> Add(const NamespaceSpec& spec, std::string name, uint64_t epoch);
  absl::StatusOr<NamespaceId> NewId(const Namespace* ns);

  const size_t namespaces_max_;
  TenantTable& tenants_;
  std::map<Fingerprint, std::unique_ptr<Namespace>> by_fingerprint_;
  std::map<std::pair<std::string, std::string>, Namespace*> by_name_;  // (tenant, name)
  std::vector<Epoch> epochs_;                                          // [NamespaceId]
};

}  // namespace kvstore::store
