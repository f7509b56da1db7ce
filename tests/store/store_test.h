// One namespace, one session, over faulty tiers on virtual time: the fixture of store_test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/store/store_fixture.h"

namespace kvstore::tests {

class StoreTest : public testing::Test {
 protected:
  void Make(const StoreFixture::Options& options) {
    f = std::make_unique<StoreFixture>(options);
    opened = f->Open(TestSpec("m"));
    ns = opened.id;
    session = *f->core->OpenSession("default");
  }
  StoreTest() { Make({}); }
  ~StoreTest() override {
    const absl::Status status = f->core->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<BlockHash> Hashes(uint32_t branch, size_t n, size_t shared = 0) {
    return Chain(opened.fingerprint, branch, n, shared);
  }
  std::unique_ptr<Acquired> Acquire(const std::vector<BlockHash>& hashes,
                                    bool can_read_gpu = false) {
    auto acquired = std::make_unique<Acquired>();
    f->core->Acquire(session, ns, hashes, {.can_read_gpu = can_read_gpu}, acquired->Observer());
    return acquired;
  }
  uint64_t UsedPages(const FaultyTier& tier) { return tier.stats().used_pages; }

  std::unique_ptr<StoreFixture> f;
  store::Store::OpenedNamespace opened;
  NamespaceId ns;
  SessionId session;
};

inline StoreFixture::Options Without(bool gpu, bool nvme) {
  StoreFixture::Options o;
  o.has_gpu = gpu;
  o.has_nvme = nvme;
  return o;
}

}  // namespace kvstore::tests
