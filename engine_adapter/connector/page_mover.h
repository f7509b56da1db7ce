// PageMover moves bytes between slots of the store and pages of one back-end's memory. HostPageMover
// is for back-ends that compute in this machine's memory, CudaPageMover (connector_cuda) for those
// on a device.
//
// Threads: StartLoad() and its Load on the sequence's thread; Save() on another, at the same time.
// Ownership: outlives its loads, and the back-end outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine_adapter/paging/kv_layout.h"
#include "kvstore/client/client.h"

namespace kvstore::engine {

// A leased block on its way to the engine.
struct LoadedBlock {
  BlockHash hash;
  const std::byte* page = nullptr;  // where the engine reads it
  bool is_in_place = false;         // in the store's memory; else in a private page of ours
  client::Tier found_in{};          // known once it was there
};

// A full page of ours, to be saved.
struct FilledPage {
  size_t position = 0;  // in the reservation
  BlockHash hash;
  const std::byte* page = nullptr;
};

class PageMover {
 public:
  // The load of one sequence's leading blocks. The destructor waits until no byte moves any more.
  class Load {
   public:
    virtual ~Load() = default;
    // As PrefixCache::WaitReady(): how many leading blocks are still good once slice `layer` can be
    // read. On a device: by work that is given to it from now on.
    virtual int64_t WaitReady(int64_t layer) = 0;
    // Why fewer than all are good.
    virtual const absl::Status& failure() const = 0;
    // After the work that read them is over: that all bytes were right, and the lease held until
    // then. Errors: DataLoss; Aborted, the lease was lost.
    virtual absl::Status Check() = 0;
  };

  virtual ~PageMover() = default;

  // Where the back-end can read a leased page without moving it. Null: it cannot.
  virtual const std::byte* InPlace(const client::PageView& view) const = 0;
  // Brings the pages that are not in place into private ones, and checks all. `lease` and `blocks`
  // outlive the load, which writes found_in.
  virtual std::unique_ptr<Load> StartLoad(const client::Namespace& ns, client::Lease& lease,
                                          std::span<LoadedBlock> blocks, absl::Time deadline) = 0;
  // Copies pages into their reserved slots and seals them; those that fail stay unsealed. Pages do
  // not change meanwhile. Errors: of the device, with all pages unsealed.
  virtual absl::Status Save(const client::Namespace& ns, std::span<const FilledPage> pages,
                            client::Reservation& reservation) = 0;
};

class HostPageMover final : public PageMover {
 public:
  const std::byte* InPlace(const client::PageView& view) const override;
  std::unique_ptr<Load> StartLoad(const client::Namespace& ns, client::Lease& lease,
                                  std::span<LoadedBlock> blocks, absl::Time deadline) override;
  absl::Status Save(const client::Namespace& ns, std::span<const FilledPage> pages,
                    client::Reservation& reservation) override;
};

}  // namespace kvstore::engine
