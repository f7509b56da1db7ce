// The conformance suite against the NVMe tier, through io_uring and through pread/pwrite.
#include <fcntl.h>
#include <unistd.h>

#include <memory>

#include "tests/tiers/tier_conformance.h"
#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using BackendKind = transfer::FileMover::BackendKind;

class NvmeUnderTest final : public TierUnderTest {
 public:
  explicit NvmeUnderTest(BackendKind backend) : backend_(backend) {}
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    return NvmeTier::Open({.dirs = {directory_.path()},
                           .capacity_bytes = (8 << 20) + 3 * kExtentBytes,
                           .index_bytes = 7 << 20,
                           .extent_bytes = kExtentBytes,
                           .queue_depth = 4,
                           .inflight_max = 8,
                           .backend = backend_},
                          core, clock);
  }
  bool Corrupt(Tier&, PageId page) override {
    // Slots of the suite's first shape; a third into it is page, not trailer.
    constexpr PageShape kShape{3, 40000};
    const int fd = open(directory_.file("pages").c_str(), O_RDWR | O_CLOEXEC);
    const auto at = static_cast<off_t>(page.slab * kExtentBytes + page.slot * kShape.slot_bytes() +
                                       kShape.slot_bytes() / 3);
    char byte = 0;
    bool is_ok = pread(fd, &byte, 1, at) == 1;
    byte = static_cast<char>(byte ^ 0x40);
    is_ok = is_ok && pwrite(fd, &byte, 1, at) == 1;
    close(fd);
    return is_ok;
  }

 private:
  static constexpr uint64_t kExtentBytes = 1 << 20;
  const BackendKind backend_;
  TestDirectory directory_;
};

TierFactory Factory(std::string name, BackendKind backend) {
  return {std::move(name), [backend] { return std::make_unique<NvmeUnderTest>(backend); }};
}

INSTANTIATE_TEST_SUITE_P(Nvme, TierConformance,
                         testing::Values(Factory("nvme_io_uring", BackendKind::kIoUring),
                                         Factory("nvme_threads", BackendKind::kThreads)),
                         TierFactoryName);

}  // namespace
}  // namespace kvstore::tiers
