// Engines as the store sees them: sessions that load and save prefixes, copy pages from and into
// mapped memory at their own pace, die, and speak through a network that delays, repeats and loses
// what they say. Each checks what it is told against the oracle.
//
// Confined to the simulation's thread.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/machine.h"
#include "tests/sim/oracle.h"

namespace kvstore::sim {

struct ClientCounts {
  uint64_t loads = 0, saves = 0, matched_blocks = 0, pages_read = 0, slices_read = 0,
           pages_lost = 0, pages_damaged = 0, committed_blocks = 0, messages_repeated = 0,
           messages_lost = 0, refused_intruders = 0, zombie_writes = 0;
};

class Clients {
 public:
  Clients(const Scenario& scenario, Machine& machine, std::vector<OracleNamespace>& namespaces,
          Random& random, Machine::Report report);

  // One thing that some client does.
  void Act();
  // Sessions and namespaces of a daemon that has just started; what the old one gave is void.
  void Reconnect();
  // The daemon is about to be killed and its memory is kept: some who are saving go on writing
  // into their pages beside the next one, which must not give those to anybody for a while.
  void LeaveZombies();
  // A client dies: its session ends, it says nothing any more.
  void Die();
  void CloseAll();
  // Asks for what belongs to others.
  void Intrude();
  void Scribble();
  // The network's messages.
  ManualExecutor& network() { return network_; }
  const ClientCounts& counts() const { return counts_; }
  // Grows with everything observed: equal for equal seeds.
  uint64_t trace() const { return trace_; }

 private:
  struct Client {
    std::string tenant;
    SessionId session;
    bool is_open = false;
  };
  struct Load {
    size_t client = 0;
    size_t ns = 0;
    SessionId session;
    uint64_t incarnation = 0;
    uint32_t oldest = 0, newest = 0;  // versions that may be seen
    std::vector<BlockHash> hashes;
    LeaseId lease;
    absl::Time lease_until;
    absl::Time gives_up_at;
    std::vector<store::AcquireUpdate::Ready> ready;
    std::vector<uint32_t> bad;
    uint32_t matched = 0;
    bool has_first = false, is_last = false, is_released = false;
  };
  struct Save {
    size_t client = 0;
    size_t ns = 0;
    SessionId session;
    uint64_t incarnation = 0;
    uint32_t version = 0;
    uint32_t first_block = 0;
    std::vector<BlockHash> hashes;  // of the whole prefix
    tiers::TierKind tier{};
    ReservationId reservation;
    absl::Time until;
    struct Page {
      uint32_t block = 0;  // position in the reservation
      std::byte* address = nullptr;
      uint64_t checksum = 0;
      bool is_filled = false;
      bool is_committed = false;
    };
    std::vector<Page> pages;
    bool is_ended = false;
  };

  // A page that somebody writes whom the daemon does not know any more.
  struct Zombie {
    std::shared_ptr<MappedSlab> slab;  // mapped as long as it is written
    std::byte* address = nullptr;
    uint64_t bytes = 0;
  };

  void WakeZombies();
  void Send(std::function<void()> message);
  void Check(bool holds, const std::string& what) {
    if (!holds) report_(what);
  }
  void Trace(uint64_t value) { trace_ = Mix(trace_ ^ value); }
  bool IsAlive(size_t client, SessionId session, uint64_t incarnation) const;
  size_t RandomNamespaceOf(size_t client);
  std::vector<BlockHash> RandomChain(size_t ns);

  void StartLoad();
  void Acquire(const std::shared_ptr<Load>& load);
  void OnUpdate(Load& load, const store::AcquireUpdate& update);
  void ReadPage();
  void CheckPage(Load& load, const store::AcquireUpdate::Ready& ready);
  void CheckSlices(Load& load, const store::AcquireUpdate::Ready& ready);
  void EndLoad();
  void Release(Load& load);
  void Renew();
  void StartSave();
  void Reserve(const std::shared_ptr<Save>& save);
  void FillPage();
  void Fill(const Save& save, Save::Page* page);
  void EndSave();
  void Commit(Save& save, const std::vector<size_t>& pages);
  void Match();
  bool IsTainted(const std::byte* slot, uint64_t bytes) const;
  void Taint(const std::byte* slot, uint64_t bytes);

  const Scenario& scenario_;
  Machine& machine_;
  std::vector<OracleNamespace>& namespaces_;
  Random& random_;
  const Machine::Report report_;
  ManualExecutor network_;
  std::vector<Client> clients_;
  std::vector<std::shared_ptr<Load>> loads_;  // shared with messages and observers under way
  std::vector<std::shared_ptr<Save>> saves_;
  std::vector<Zombie> zombies_;
  std::set<uintptr_t> tainted_;  // pages of 4 KiB that somebody scribbled on
  ClientCounts counts_;
  uint64_t trace_ = 0;
};

}  // namespace kvstore::sim
