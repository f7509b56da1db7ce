// PageMemory is where a back-end's private pages come from: this machine's memory, or a device's,
// whichever the back-end computes on.
//
// Threads: externally synchronised. Ownership: pages go back before the PageMemory ends.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <memory>

#include "engine_adapter/paging/kv_layout.h"

namespace kvstore::engine {

class PageMemory {
 public:
  // What an empty page holds. kNan makes any read of a value that was never written visible.
  enum class Fill : uint8_t { kNone, kNan };

  class Return {
   public:
    explicit Return(PageMemory* memory = nullptr) : memory_(memory) {}
    void operator()(std::byte* page) const { memory_->Free(page); }

   private:
    PageMemory* memory_;
  };
  using Page = std::unique_ptr<std::byte, Return>;

  virtual ~PageMemory() = default;

  // Errors: ResourceExhausted, no memory for a page.
  virtual absl::StatusOr<Page> Allocate(Fill fill) = 0;

 protected:
  virtual void Free(std::byte* page) = 0;
};

// Pages in this machine's memory. Thread-safe.
class HostPages final : public PageMemory {
 public:
  explicit HostPages(const KvLayout& layout) : layout_(layout) {}
  absl::StatusOr<Page> Allocate(Fill fill) override;

 protected:
  void Free(std::byte* page) override;

 private:
  const KvLayout layout_;
};

}  // namespace kvstore::engine
