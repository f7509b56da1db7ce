// What is behind a Reservation: the slots of its blocks, mapped, and what has been sealed in them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client/client.h"
#include "kvstore/client/connection.h"
#include "kvstore/client/memory_session.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::client {

// Distinct blocks may be filled from several threads; Commit() and Abort() are externally
// synchronised with that.
struct Reservation::State {
  // Takes the answer; slots are not mapped yet. Errors: Unavailable, it is not well-formed.
  static absl::StatusOr<std::shared_ptr<State>> Make(std::shared_ptr<Connection> connection,
                                                     std::shared_ptr<MemorySession> session,
                                                     const Namespace& ns,
                                                     const v1::ReserveRequest& request,
                                                     const v1::ReserveResponse& response);
  ~State() { Abort(); }

  // True if every slab is mapped already, and then all slots are known.
  bool MapCached();
  // Errors: those of MemorySession::Slab().
  absl::Status Map(absl::Duration timeout);
  absl::Status Commit(std::span<const uint32_t> blocks, absl::Time deadline);
  void Abort();
  PageIdentity Identity(size_t block) const;

  struct Block {
    BlockState state{};
    uint32_t slab = 0;
    uint32_t slot = 0;
    std::byte* address = nullptr;        // in host memory
    const DeviceSlab* device = nullptr;  // or on it, at `offset`
    uint64_t offset = 0;                 // in the slab
    bool is_placed() const { return address != nullptr || device != nullptr; }
    std::optional<uint64_t> page_checksum;  // once filled or sealed
  };

  std::shared_ptr<Connection> connection;  // shared: the abort may come after the client's call
  std::shared_ptr<MemorySession> session;
  Fingerprint fingerprint;
  PageShape shape;
  Tier tier{};
  std::optional<BlockHash> parent;
  uint32_t first_block_index = 0;
  std::vector<BlockHash> hashes;
  std::vector<Block> blocks;
  std::vector<std::shared_ptr<const MappedSlab>> slabs;  // keeps the slots mapped
  uint64_t reservation = 0;                              // 0: nothing to commit or abort
  size_t uncommitted_blocks = 0;

 private:
  absl::Status Place(Block* block, std::shared_ptr<const MappedSlab> slab);
};

}  // namespace kvstore::client
