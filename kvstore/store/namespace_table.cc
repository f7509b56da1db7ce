#include "kvstore/store/namespace_table.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::store {
namespace {

constexpr size_t kNamespaceIdsMax = 65535;  // index::Node::ns is 16 bits
constexpr char kRecordMagic[] = "kvnr1";    // on disk
constexpr uint64_t kEpochMax = uint64_t{1} << 62;

// The first field in which two specs of one name differ, for the error message.
std::string FirstDifference(const NamespaceSpec& a, const NamespaceSpec& b) {
  const std::pair<const char*, std::pair<std::string, std::string>> fields[] = {
      {"model", {a.model, b.model}},
      {"revision", {a.weights_revision, b.weights_revision}},
      {"adapter", {a.adapter, b.adapter}},
      {"dtype", {a.kv_dtype, b.kv_dtype}},
      {"codec", {a.codec, b.codec}},
      {"layout", {a.layout, b.layout}},
      {"layout version", {absl::StrCat(a.layout_version), absl::StrCat(b.layout_version)}},
      {"numerics", {a.numerics, b.numerics}},
      {"block tokens", {absl::StrCat(a.block_tokens), absl::StrCat(b.block_tokens)}},
      {"slices", {absl::StrCat(a.shape.num_slices), absl::StrCat(b.shape.num_slices)}},
      {"slice bytes", {absl::StrCat(a.shape.slice_bytes), absl::StrCat(b.shape.slice_bytes)}},
  };
  for (const auto& [name, values] : fields) {
    if (values.first != values.second)
      return absl::StrCat(name, " is ", values.first, " there and ", values.second, " here");
  }
  return "ranks or salt differ";
}

}  // namespace

absl::StatusOr<Namespace*> NamespaceTable::Open(const NamespaceSpec& spec, std::string name) {
  RETURN_IF_ERROR(spec.Validate());
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  if (name.empty()) name = fingerprint.Hex();
  if (name.size() > kSpecStringBytesMax)
    return absl::InvalidArgumentError("namespace name is longer than 256 bytes");
  auto named = by_name_.find({spec.tenant, name});
  if (named != by_name_.end() && named->second->fingerprint != fingerprint) {
    return absl::AlreadyExistsError(absl::StrCat(
        "namespace \"", name, "\" is another one: ", FirstDifference(named->second->spec, spec),
        "; choose another name"));
  }
  Namespace* ns = Find(fingerprint);
  if (ns == nullptr) {
    ASSIGN_OR_RETURN(ns, Add(spec, name, 1));
  } else if (ns->name != name) {
    by_name_[{spec.tenant, name}] = ns;  // one more name for it
  }
  ns->is_open = true;
  return ns;
}

absl::StatusOr<Namespace*> NamespaceTable::Add(const NamespaceSpec& spec, std::string name,
                                               uint64_t epoch) {
  if (by_fingerprint_.size() >= namespaces_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", namespaces_max_, " namespaces already (limits.namespaces_max)"));
  }
  ASSIGN_OR_RETURN(const TenantId tenant, tenants_.FindOrAdd(spec.tenant));
  auto ns = std::make_unique<Namespace>();
  ns->name = name;
  ns->fingerprint = spec.ComputeFingerprint();
  ns->spec = spec;
  ns->epoch = epoch;
  ASSIGN_OR_RETURN(ns->id, NewId(ns.get()));
  ns->pool = tenants_.PoolOf(tenant, spec.shape.slot_bytes());
  Namespace* raw = ns.get();
  by_name_.try_emplace({spec.tenant, std::move(name)}, raw);
  by_fingerprint_[raw->fingerprint] = std::move(ns);
  return raw;
}

absl::StatusOr<NamespaceId> NamespaceTable::NewId(const Namespace* ns) {
  size_t id = 0;
  while (id < epochs_.size() && epochs_[id].ns != nullptr) ++id;
  if (id == kNamespaceIdsMax)
    return absl::ResourceExhaustedError(
        "too many cleared namespaces wait to be swept; try again later");
  if (id == epochs_.size()) epochs_.emplace_back();
  epochs_[id] = {.ns = ns, .epoch = ns->epoch, .is_current = true};
  return NamespaceId(static_cast<uint32_t>(id));
}

absl::Status NamespaceTable::Advance(Namespace* ns) {
  const NamespaceId old = ns->id;
  ASSIGN_OR_RETURN(ns->id, NewId(ns));
  epochs_[old.value()].is_current = false;
  epochs_[ns->id.value()].epoch = ++ns->epoch;
  return absl::OkStatus();
}

void NamespaceTable::Forget(NamespaceId id) { epochs_[id.value()] = Epoch{}; }

std::vector<NamespaceId> NamespaceTable::OldEpochs() const {
  std::vector<NamespaceId> old;
  for (size_t id = 0; id < epochs_.size(); ++id) {
    if (epochs_[id].ns != nullptr && !epochs_[id].is_current)
      old.push_back(NamespaceId(static_cast<uint32_t>(id)));
  }
  return old;
}

std::string NamespaceTable::EncodeRecord(const Namespace& ns) {
  std::string out = kRecordMagic;
  const uint32_t name_bytes = static_cast<uint32_t>(ns.name.size());
  out.append(reinterpret_cast<const char*>(&ns.epoch), sizeof ns.epoch);
  out.append(reinterpret_cast<const char*>(&name_bytes), sizeof name_bytes);
  return out + ns.name + ns.spec.Encode();
}

absl::StatusOr<Namespace*> NamespaceTable::Restore(std::string_view record,
                                                   uint64_t* recorded_epoch) {
  const size_t magic = sizeof kRecordMagic - 1;
  uint64_t epoch = 0;
  uint32_t name_bytes = 0;
  const size_t fixed = magic + sizeof epoch + sizeof name_bytes;
  if (!record.starts_with(kRecordMagic) || record.size() < fixed)
    return absl::DataLossError("namespace record: unknown encoding");
  std::memcpy(&epoch, record.data() + magic, sizeof epoch);
  std::memcpy(&name_bytes, record.data() + magic + sizeof epoch, sizeof name_bytes);
  // From there on a clear could not make it newer for long; no store gets there by itself.
  if (epoch > kEpochMax) return absl::DataLossError("namespace record: damaged epoch");
  if (name_bytes > kSpecStringBytesMax || name_bytes > record.size() - fixed)
    return absl::DataLossError("namespace record: damaged name");
  std::string name(record.substr(fixed, name_bytes));
  ASSIGN_OR_RETURN(const NamespaceSpec spec,
                   NamespaceSpec::Decode(record.substr(fixed + name_bytes)));
  *recorded_epoch = epoch;
  if (Namespace* known = Find(spec.ComputeFingerprint())) {
    known->epoch = std::max(known->epoch, epoch);
    epochs_[known->id.value()].epoch = known->epoch;
    known->is_kept = true;
    return known;
  }
  ASSIGN_OR_RETURN(Namespace * restored, Add(spec, std::move(name), epoch));
  restored->is_kept = true;
  return restored;
}

const Namespace* NamespaceTable::Find(const Fingerprint& fingerprint) const {
  auto it = by_fingerprint_.find(fingerprint);
  return it == by_fingerprint_.end() ? nullptr : it->second.get();
}

Namespace* NamespaceTable::Find(const Fingerprint& fingerprint) {
  return const_cast<Namespace*>(std::as_const(*this).Find(fingerprint));
}

const Namespace* NamespaceTable::FindByName(std::string_view tenant, std::string_view name) const {
  auto it = by_name_.find({std::string(tenant), std::string(name)});
  return it == by_name_.end() ? nullptr : it->second;
}

const Epoch* NamespaceTable::FindEpoch(NamespaceId id) const {
  if (id.value() >= epochs_.size() || epochs_[id.value()].ns == nullptr) return nullptr;
  return &epochs_[id.value()];
}

std::vector<const Namespace*> NamespaceTable::All() const {
  std::vector<const Namespace*> all;
  for (const auto& [fingerprint, ns] : by_fingerprint_) all.push_back(ns.get());
  return all;
}

}  // namespace kvstore::store
