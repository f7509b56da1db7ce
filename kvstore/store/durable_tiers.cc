#include "kvstore/store/durable_tiers.h"

#include <memory>

namespace kvstore::store {
namespace {

using Done = tiers::Durable::Done;

// Waits for `num_reports`, which are made one after another on the core thread.
auto Join(size_t num_reports, Done done) {
  struct Joined {
    size_t left;
    absl::Status status;
    Done done;
  };
  // Shared by the callbacks of all tiers.
  auto joined = std::make_shared<Joined>(
      Joined{.left = num_reports, .status = absl::OkStatus(), .done = std::move(done)});
  return [joined](absl::Status status) {
    joined->status.Update(status);
    if (--joined->left == 0) joined->done(std::move(joined->status));
  };
}

}  // namespace

DurableTiers::DurableTiers(const Store::Tiers& tiers) {
  const std::pair<TierKind, tiers::Tier*> present[] = {
      {TierKind::kGpu, tiers.gpu}, {TierKind::kDram, tiers.dram}, {TierKind::kNvme, tiers.nvme}};
  for (const auto& [kind, tier] : present) {
    if (tier != nullptr && tier->durable() != nullptr) all_.emplace_back(kind, tier->durable());
  }
}

void DurableTiers::SaveMetadata(const std::string& key, const std::string& value, Done done) {
  if (empty()) return done(absl::OkStatus());
  const auto report = Join(all_.size(), std::move(done));
  for (const auto& [kind, tier] : all_) tier->SaveMetadata(key, value, report);
}

void DurableTiers::EraseEpochs(const Fingerprint& fingerprint, uint64_t epoch, Done done) {
  if (empty()) return done(absl::OkStatus());
  const auto report = Join(all_.size(), std::move(done));
  for (const auto& [kind, tier] : all_) tier->EraseEpochs(fingerprint, epoch, report);
}

void DurableTiers::NameNamespace(const Fingerprint& fingerprint, std::string_view name) {
  for (const auto& [kind, tier] : all_) tier->NameNamespace(fingerprint, name);
}

}  // namespace kvstore::store
