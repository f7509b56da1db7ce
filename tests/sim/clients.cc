#include "tests/sim/clients.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::sim {
namespace {

using store::AcquireUpdate;
using tiers::TierKind;

constexpr absl::Duration kCallDeadline = absl::Seconds(2);
constexpr size_t kLoadsMax = 24;

template <typename T>
T Take(std::vector<T>& from, size_t i) {
  T taken = std::move(from[i]);
  from.erase(from.begin() + static_cast<ptrdiff_t>(i));
  return taken;
}

}  // namespace

Clients::Clients(const Scenario& scenario, Machine& machine,
                 std::vector<OracleNamespace>& namespaces, Random& random, Machine::Report report)
    : scenario_(scenario),
      machine_(machine),
      namespaces_(namespaces),
      random_(random),
      report_(std::move(report)),
      network_(machine.clock()) {
  for (uint32_t i = 0; i < scenario.num_clients; ++i)
    clients_.push_back({.tenant = i % 3 == 2 ? "b" : "a", .session = {}});
}

void Clients::Send(std::function<void()> message) {
  if (random_.Chance(scenario_.lost)) {
    ++counts_.messages_lost;
    return;
  }
  const bool is_repeated = random_.Chance(scenario_.duplicated);
  counts_.messages_repeated += is_repeated;
  for (int i = 0; i <= is_repeated; ++i) {
    absl::Duration delay = random_.UpTo(absl::Microseconds(300));
    if (random_.Chance(scenario_.late)) delay = random_.UpTo(absl::Milliseconds(500));
    network_.PostAt(machine_.clock().Now() + delay,
                    [this, message, incarnation = machine_.incarnation()] {
                      // The connection ended with the daemon.
                      if (machine_.is_running() && incarnation == machine_.incarnation()) message();
                    });
  }
}

bool Clients::IsAlive(size_t client, SessionId session, uint64_t incarnation) const {
  const Client& c = clients_[client];
  return c.is_open && c.session == session && incarnation == machine_.incarnation();
}

size_t Clients::RandomNamespaceOf(size_t client) {
  size_t ns = random_.OneIn(2) ? 0 : random_.Below(static_cast<uint32_t>(namespaces_.size()));
  while (namespaces_[ns].spec().tenant != clients_[client].tenant)
    ns = (ns + 1) % namespaces_.size();
  return ns;
}

std::vector<BlockHash> Clients::RandomChain(size_t ns) {
  return namespaces_[ns].Chain(random_.Below(scenario_.branches),
                               1 + random_.Below(scenario_.chain_blocks));
}

void Clients::Act() {
  const uint32_t what = random_.Below(100);
  if (what < 18) return StartLoad();
  if (what < 42) return ReadPage();
  if (what < 54) return EndLoad();
  if (what < 57) return Renew();
  if (what < 71) return StartSave();
  if (what < 85) return FillPage();
  if (what < 96) return EndSave();
  Match();
}

void Clients::Reconnect() {
  loads_.clear();
  saves_.clear();
  if (!scenario_.keeps_dram) tainted_.clear();
  WakeZombies();
  for (OracleNamespace& ns : namespaces_) {
    ns.OnRestart();
    machine_.store().OpenNamespace(ns.spec(), "", [](auto) {});
  }
  for (Client& client : clients_) {
    const auto session = machine_.store().OpenSession(client.tenant);
    Check(session.ok(), "no session");
    client.session = *session;
    client.is_open = true;
  }
}

void Clients::LeaveZombies() {
  for (const auto& save : saves_) {
    if (save->tier != TierKind::kDram || save->is_ended || machine_.clock().Now() >= save->until ||
        !IsAlive(save->client, save->session, save->incarnation) || !random_.OneIn(2))
      continue;
    const uint64_t bytes = namespaces_[save->ns].spec().shape.slot_bytes();
    for (const Save::Page& page : save->pages) {
      if (!page.is_committed)
        zombies_.push_back({machine_.mappings().SlabAt(page.address), page.address, bytes});
    }
  }
}

// While the slots that they write are out of use.
void Clients::WakeZombies() {
  const absl::Time now = machine_.clock().Now();
  const absl::Duration awake = std::min(absl::Seconds(1), scenario_.lease_time / 2);
  for (Zombie& zombie : std::exchange(zombies_, {})) {
    network_.PostAt(now + random_.UpTo(awake),
                    [this, until = now + awake, zombie, incarnation = machine_.incarnation()] {
                      if (machine_.incarnation() != incarnation || machine_.clock().Now() > until)
                        return;
                      std::memset(zombie.address, 0x5b, zombie.bytes);
                      ++counts_.zombie_writes;
                    });
  }
}

void Clients::Die() {
  const size_t i = random_.Below(static_cast<uint32_t>(clients_.size()));
  Client& client = clients_[i];
  machine_.store().CloseSession(client.session);
  std::erase_if(loads_, [&](const auto& load) {
    if (load->client != i) return false;
    load->is_released = true;  // nothing may be told any more
    return true;
  });
  if (!random_.OneIn(4)) std::erase_if(saves_, [&](const auto& save) { return save->client == i; });
  client.session = *machine_.store().OpenSession(client.tenant);
}

void Clients::CloseAll() {
  for (Client& client : clients_) {
    machine_.store().CloseSession(client.session);
    client.is_open = false;
  }
  for (const auto& load : loads_) load->is_released = true;
  loads_.clear();
  saves_.clear();
}

// --- Loads

void Clients::StartLoad() {
  if (loads_.size() >= kLoadsMax) return;
  auto load = std::make_shared<Load>();
  load->client = random_.Below(static_cast<uint32_t>(clients_.size()));
  load->ns = RandomNamespaceOf(load->client);
  load->session = clients_[load->client].session;
  load->incarnation = machine_.incarnation();
  load->hashes = RandomChain(load->ns);
  loads_.push_back(load);
  ++counts_.loads;
  Send([this, load] {
    if (!load->has_first) return Acquire(load);
    const auto repeated = std::make_shared<Load>(*load);  // nobody will release it
    repeated->has_first = repeated->is_last = repeated->is_released = false;
    repeated->ready.clear();
    Acquire(repeated);
  });
}

void Clients::Acquire(const std::shared_ptr<Load>& load) {
  if (!IsAlive(load->client, load->session, load->incarnation)) return;
  OracleNamespace& ns = namespaces_[load->ns];
  const auto found = machine_.store().FindNamespace(ns.spec().tenant, ns.fingerprint());
  if (!found.ok()) return;
  load->oldest = ns.oldest();
  load->newest = ns.version();
  load->lease_until = machine_.clock().Now() + scenario_.lease_time;
  load->gives_up_at = machine_.clock().Now() + kCallDeadline;
  const uint32_t expected = ns.LongestMatch(load->hashes);
  absl::Status status;
  machine_.store().Acquire(
      load->session, found->id, load->hashes,
      {.can_read_gpu = random_.OneIn(2), .by_slices = random_.OneIn(2)},
      [this, load, &status, is_inside = std::make_shared<bool>(true)](const AcquireUpdate& update) {
        if (std::exchange(*is_inside, false)) status = update.status;
        OnUpdate(*load, update);
      });
  Check(load->has_first, "Acquire did not answer");
  Check(load->matched <= expected,
        absl::StrCat("matched ", load->matched, " blocks of which ", expected, " were committed"));
  if (scenario_.is_exact() && !absl::IsAlreadyExists(status))
    Check(load->matched == expected, absl::StrCat("matched ", load->matched, " of ", expected));
  counts_.matched_blocks += load->matched;
  Trace(load->matched);
}

void Clients::OnUpdate(Load& load, const AcquireUpdate& update) {
  Check(!load.is_released, "an update after the lease was released");
  Check(!load.is_last, "an update after the last one");
  Check(update.is_first != load.has_first, "the first update is not the first");
  Check(update.is_first || update.matched_blocks <= load.matched, "a match grew");
  load.has_first = true;
  load.is_last = update.is_last;
  if (update.is_first) load.lease = update.lease;
  load.matched = update.matched_blocks;
  for (const AcquireUpdate::Ready& ready : update.ready) {
    const bool is_whole = !ready.leading_slices.has_value();
    is_whole ? load.ready.push_back(ready) : CheckSlices(load, ready);
  }
}

// As soon as they are told: by then the leading slices have their bytes, which is not left to the
// reader's own checksums.
void Clients::CheckSlices(Load& load, const AcquireUpdate::Ready& ready) {
  if (!ready.leading_slices.has_value()) return;
  const OracleNamespace& ns = namespaces_[load.ns];
  const PageShape& shape = ns.spec().shape;
  Check(*ready.leading_slices > 0 && *ready.leading_slices < shape.num_slices,
        "slices that a page cannot have");
  const uint64_t bytes = uint64_t{*ready.leading_slices} * shape.slice_bytes;
  const std::span<const std::byte> told(ready.location.address, bytes);
  if (machine_.mappings().GenerationAt(ready.location.address) != ready.location.page.generation ||
      IsTainted(ready.location.address, bytes))
    return;
  Check(ns.IsRight(load.hashes[ready.block], load.oldest, load.newest, told),
        "a slice was told before its bytes were right");
  counts_.slices_read += *ready.leading_slices;
  Trace(*ready.leading_slices);
}

void Clients::ReadPage() {
  if (loads_.empty()) return;
  Load& load = *loads_[random_.Below(static_cast<uint32_t>(loads_.size()))];
  if (load.ready.empty() || load.incarnation != machine_.incarnation()) return;
  CheckPage(load, load.ready[random_.Below(static_cast<uint32_t>(load.ready.size()))]);
}

// As a client does it: copy and check the checksums, then look whether the slot is still in the
// use that was leased. Both well: these bytes go to the engine.
void Clients::CheckPage(Load& load, const AcquireUpdate::Ready& ready) {
  const OracleNamespace& ns = namespaces_[load.ns];
  PageIdentity expect{.shape = ns.spec().shape, .fingerprint = ns.fingerprint()};
  expect.hash = load.hashes[ready.block];
  expect.page_checksum = ready.location.page_checksum;
  std::vector<std::byte> page(expect.shape.page_bytes());
  const absl::Status copied = transfer::CopyFromSlot(page.data(), ready.location.address, expect);
  const uint64_t generation = machine_.mappings().GenerationAt(ready.location.address);
  const bool is_current = generation == ready.location.page.generation;
  // A copy that failed is dropped at once, and its slot kept out of use.
  const bool is_quarantined =
      scenario_.is_damaged() && generation == ready.location.page.generation + 1;
  const bool is_leased = !load.is_released && machine_.clock().Now() < load.lease_until &&
                         IsAlive(load.client, load.session, load.incarnation);
  Check(!is_leased || is_current || is_quarantined, "a leased page was reused");
  if (copied.ok() && is_current) {
    Check(ns.IsRight(expect.hash, load.oldest, load.newest, page), "WRONG BYTES were accepted");
    ++counts_.pages_read;
  } else if (!is_current) {
    ++counts_.pages_lost;
  } else {
    Check(!is_leased || IsTainted(ready.location.address, expect.shape.slot_bytes()),
          absl::StrCat("a leased page differs and nobody damaged it: ", copied.ToString()));
    load.bad.push_back(ready.block);
    ++counts_.pages_damaged;
  }
  Trace(copied.ok() * 2 + is_current);
}

void Clients::EndLoad() {
  if (loads_.empty()) return;
  const size_t i = random_.Below(static_cast<uint32_t>(loads_.size()));
  const absl::Time now = machine_.clock().Now();
  if (!loads_[i]->has_first) {
    if (random_.OneIn(3)) loads_.erase(loads_.begin() + static_cast<ptrdiff_t>(i));  // lost
    return;
  }
  // Waits for what is on its way up, until its deadline; or is cancelled.
  if (!loads_[i]->is_last && now < loads_[i]->gives_up_at && !random_.OneIn(4)) return;
  const std::shared_ptr<Load> load = Take(loads_, i);
  if (load->lease.value() == 0) return;
  if (random_.OneIn(20)) return;  // forgets: the lease ends by itself
  Send([this, load] { Release(*load); });
}

void Clients::Release(Load& load) {
  const bool was_released = std::exchange(load.is_released, true);
  const bool is_alive = machine_.clock().Now() < load.lease_until &&
                        IsAlive(load.client, load.session, load.incarnation);
  const absl::Status status = machine_.store().Release(load.session, load.lease, load.bad);
  if (was_released) {
    Check(absl::IsNotFound(status), "a lease was released twice");
  } else if (is_alive) {
    Check(status.ok(), absl::StrCat("a live lease is gone: ", status.ToString()));
  }
  Trace(static_cast<uint64_t>(status.code()));
}

void Clients::Renew() {
  if (loads_.empty()) return;
  Load& load = *loads_[random_.Below(static_cast<uint32_t>(loads_.size()))];
  if (load.lease.value() == 0 || load.incarnation != machine_.incarnation()) return;
  const absl::Time now = machine_.clock().Now();
  const absl::Status status = machine_.store().Renew(load.session, load.lease);
  if (status.ok()) {
    load.lease_until = now + scenario_.lease_time;
  } else {
    Check(now >= load.lease_until || load.is_released, "a live lease cannot be renewed");
  }
}

void Clients::Match() {
  const size_t client = random_.Below(static_cast<uint32_t>(clients_.size()));
  const size_t i = RandomNamespaceOf(client);
  const auto found =
      machine_.store().FindNamespace(clients_[client].tenant, namespaces_[i].fingerprint());
  if (!found.ok()) return;
  const std::vector<BlockHash> hashes = RandomChain(i);
  const uint32_t matched = machine_.store().Match(found->id, hashes).matched_blocks;
  const uint32_t expected = namespaces_[i].LongestMatch(hashes);
  Check(matched <= expected, "Match found a block that nobody committed");
  Check(!scenario_.is_exact() || matched == expected, "Match missed a block");
  Trace(matched);
}

// --- Mischief

void Clients::Intrude() {
  const size_t client = random_.Below(static_cast<uint32_t>(clients_.size()));
  const SessionId session = clients_[client].session;
  store::Store& store = machine_.store();
  for (const auto& load : loads_) {
    if (load->client == client || load->lease.value() == 0) continue;
    Check(absl::IsNotFound(store.Release(session, load->lease, {})), "released another's lease");
    Check(absl::IsNotFound(store.Renew(session, load->lease)), "renewed another's lease");
  }
  for (const auto& save : saves_) {
    if (save->client == client || save->pages.empty()) continue;
    const store::CommitBlock block{.block = save->pages[0].block, .page_checksum = 1};
    Check(absl::IsNotFound(store.Commit(session, save->reservation, {&block, 1})),
          "committed another's reservation");
    Check(absl::IsNotFound(store.Abort(session, save->reservation)),
          "gave another's reservation back");
  }
  for (const OracleNamespace& ns : namespaces_) {
    const auto found = store.FindNamespace(ns.spec().tenant, ns.fingerprint());
    if (!found.ok()) continue;
    for (const OracleNamespace& other : namespaces_) {
      if (&other != &ns)
        Check(store.Match(found->id, other.Chain(1, 4)).matched_blocks == 0,
              "matched another namespace's blocks");
    }
    if (ns.spec().tenant == clients_[client].tenant) continue;
    Check(!store.FindNamespace(clients_[client].tenant, ns.fingerprint()).ok(),
          "found another tenant's namespace");
    absl::Status status;
    store.Acquire(session, found->id, ns.Chain(1, 2), {},
                  [&status](const AcquireUpdate& update) { status = update.status; });
    Check(absl::IsNotFound(status), "acquired another tenant's blocks");
    Check(absl::IsNotFound(
              store.Reserve(session, found->id, std::nullopt, 0, ns.Chain(1, 1), TierKind::kDram)
                  .status()),
          "reserved in another tenant's namespace");
    ++counts_.refused_intruders;
  }
}

void Clients::Scribble() {
  std::byte* const at = machine_.mappings().RandomByte(random_);
  *at ^= std::byte{static_cast<uint8_t>(1 + random_.Below(255))};
  Taint(at, 1);
}

bool Clients::IsTainted(const std::byte* slot, uint64_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(slot) / 4096;
  const auto it = tainted_.lower_bound(begin);
  return it != tainted_.end() && *it <= (reinterpret_cast<uintptr_t>(slot) + bytes - 1) / 4096;
}

void Clients::Taint(const std::byte* slot, uint64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(slot);
  for (uintptr_t page = begin / 4096; page <= (begin + bytes - 1) / 4096; ++page)
    tainted_.insert(page);
}

}  // namespace kvstore::sim
