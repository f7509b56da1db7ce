// What the simulated clients save: reserve, fill, commit, at times twice, late, or not at all.
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/clients.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::sim {
namespace {

using store::ReserveState;
using tiers::TierKind;

constexpr size_t kSavesMax = 12;

}  // namespace

void Clients::StartSave() {
  if (saves_.size() >= kSavesMax) return;
  auto save = std::make_shared<Save>();
  save->client = random_.Below(static_cast<uint32_t>(clients_.size()));
  save->ns = RandomNamespaceOf(save->client);
  save->session = clients_[save->client].session;
  save->incarnation = machine_.incarnation();
  save->hashes = RandomChain(save->ns);
  save->tier = scenario_.has_gpu && random_.OneIn(3) ? TierKind::kGpu : TierKind::kDram;
  if (random_.OneIn(3))
    save->first_block = random_.Below(static_cast<uint32_t>(save->hashes.size()));
  ++counts_.saves;
  Send([this, save] {
    if (!IsAlive(save->client, save->session, save->incarnation)) return;
    Reserve(save->reservation.value() == 0 ? save : std::make_shared<Save>(*save));
  });
}

void Clients::Reserve(const std::shared_ptr<Save>& save) {
  const OracleNamespace& ns = namespaces_[save->ns];
  const auto found = machine_.store().FindNamespace(ns.spec().tenant, ns.fingerprint());
  if (!found.ok()) return;
  const std::span<const BlockHash> hashes(save->hashes);
  std::optional<BlockHash> parent;
  if (save->first_block > 0) parent = hashes[save->first_block - 1];
  const auto result = machine_.store().Reserve(save->session, found->id, parent, save->first_block,
                                               hashes.subspan(save->first_block), save->tier);
  Trace(static_cast<uint64_t>(result.status().code()));
  if (!result.ok()) {
    Check(absl::IsFailedPrecondition(result.status()) && parent.has_value(),
          absl::StrCat("Reserve: ", result.status().ToString()));
    return;
  }
  save->is_ended = false;  // in a repetition
  save->version = ns.version();
  save->reservation = result->reservation;
  save->until = machine_.clock().Now() + scenario_.lease_time;
  save->pages.clear();
  for (uint32_t i = 0; i < result->blocks.size(); ++i) {
    if (result->blocks[i].state != ReserveState::kReserved) continue;
    save->pages.push_back({.block = i, .address = result->blocks[i].location.address});
    Check(!scenario_.is_exact() || save->tier == TierKind::kGpu ||
              !ns.MayMatch(save->hashes[save->first_block + i]),
          "a block that is stored was handed out again");
  }
  if (!save->pages.empty()) saves_.push_back(save);
}

void Clients::FillPage() {
  if (saves_.empty()) return;
  const size_t i = random_.Below(static_cast<uint32_t>(saves_.size()));
  Save& save = *saves_[i];
  if (save.is_ended) return;
  const OracleNamespace& ns = namespaces_[save.ns];
  const uint64_t slot_bytes = ns.spec().shape.slot_bytes();
  const bool is_valid =
      machine_.clock().Now() < save.until && IsAlive(save.client, save.session, save.incarnation);
  if (!is_valid || save.pages[0].is_committed) {
    // A client that was stopped for too long, or that goes on writing after its commit.
    const bool is_zombie = scenario_.zombie_every > 0 && random_.OneIn(scenario_.zombie_every);
    if (is_zombie) {
      std::byte* const address = save.pages[0].address;
      std::memset(address + random_.Below(64), 0x5a, 32);
      Taint(address, slot_bytes);
    }
    if (!is_valid) saves_.erase(saves_.begin() + static_cast<ptrdiff_t>(i));
    return;
  }
  for (Save::Page& page : save.pages) {
    if (!page.is_filled && !random_.OneIn(6)) Fill(save, &page);
  }
}

void Clients::Fill(const Save& save, Save::Page* page) {
  const OracleNamespace& ns = namespaces_[save.ns];
  std::vector<std::byte> bytes(ns.spec().shape.page_bytes());
  const uint32_t block = save.first_block + page->block;
  ns.FillPage(save.hashes[block], save.version, bytes);
  if (random_.OneIn(6)) {  // half of it now, the rest another time
    std::memcpy(page->address, bytes.data(), bytes.size() / 2);
    return;
  }
  PageIdentity identity{.shape = ns.spec().shape, .fingerprint = ns.fingerprint()};
  identity.hash = save.hashes[block];
  if (block > 0) identity.parent = save.hashes[block - 1];
  identity.block_index = block;
  page->checksum = transfer::CopyIntoSlot(page->address, bytes.data(), identity);
  page->is_filled = true;
}

void Clients::EndSave() {
  if (saves_.empty()) return;
  const size_t i = random_.Below(static_cast<uint32_t>(saves_.size()));
  const std::shared_ptr<Save> save = saves_[i];
  if (random_.OneIn(15)) {
    saves_.erase(saves_.begin() + static_cast<ptrdiff_t>(i));
    Send([this, save] {
      const bool was_ended = std::exchange(save->is_ended, true);
      const absl::Status status = machine_.store().Abort(save->session, save->reservation);
      Check(!was_ended || absl::IsNotFound(status), "a reservation was given back twice");
      Trace(static_cast<uint64_t>(status.code()));
    });
    return;
  }
  std::vector<size_t> pages;
  for (size_t p = 0; p < save->pages.size(); ++p) {
    if (save->pages[p].is_filled && !save->pages[p].is_committed) pages.push_back(p);
  }
  if (pages.empty() || (pages.size() < save->pages.size() && !random_.OneIn(3))) return;
  if (pages.size() == save->pages.size() && !(scenario_.zombie_every > 0 && random_.OneIn(4)))
    saves_.erase(saves_.begin() + static_cast<ptrdiff_t>(i));
  Send([this, save, pages] { Commit(*save, pages); });
}

void Clients::Commit(Save& save, const std::vector<size_t>& pages) {
  OracleNamespace& ns = namespaces_[save.ns];
  std::vector<store::CommitBlock> blocks;
  bool is_repeated = save.is_ended;
  for (const size_t p : pages) {
    blocks.push_back({.block = save.pages[p].block, .page_checksum = save.pages[p].checksum});
    is_repeated |= save.pages[p].is_committed;
  }
  const bool is_valid =
      machine_.clock().Now() < save.until && IsAlive(save.client, save.session, save.incarnation);
  const absl::Status status = machine_.store().Commit(save.session, save.reservation, blocks);
  Trace(static_cast<uint64_t>(status.code()));
  if (!status.ok()) {
    // What a clear that was undone brought back has other bytes.
    const bool has_returned = absl::IsDataLoss(status) && ns.oldest() < save.version;
    Check(is_repeated || !is_valid || save.version != ns.version() || has_returned,
          absl::StrCat("a live reservation was not committed: ", status.ToString()));
    if (absl::IsAborted(status)) save.is_ended = true;
    return;
  }
  Check(!is_repeated, "a block was committed twice");
  Check(save.version == ns.version(), "published into a cleared namespace");
  for (const size_t p : pages) {
    save.pages[p].is_committed = true;
    ns.OnCommitted(save.hashes[save.first_block + save.pages[p].block]);
    ++counts_.committed_blocks;
  }
}

}  // namespace kvstore::sim
