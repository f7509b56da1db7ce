// StorePages for a back-end on a device, with a real daemon and a CUDA driver without a device: the
// driver does its work late, in any order that streams allow, and poisons what is on its way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine_adapter/connector/store_pages.h"
#include "engine_adapter/connector_cuda/cuda_page_mover.h"
#include "kernels/page_checksum.h"
#include "tests/integration/daemon_process.h"
#include "tests/support/fake_cuda_driver.h"
#include "transfer/cuda/device_memory.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Lease;
using client::Namespace;
using engine::BlockSource;
using engine::ChecksumBatch;
using engine::KvLayout;
using engine::PageMemory;
using engine::StorePages;
using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Key;
using transfer::FakeCudaDevice;

constexpr KvLayout kLayout = {
    .num_layers = 4, .num_kv_heads = 2, .head_dim = 64, .block_tokens = 16};
constexpr uint64_t kPages = 96;

// Brings the slices here in the order of the stream, and takes their checksums when asked.
class CopiedChecksums final : public ChecksumBatch {
 public:
  CopiedChecksums(std::shared_ptr<transfer::CudaContext> context, size_t num_tasks,
                  uint32_t slice_bytes)
      : context_(std::move(context)), tasks_(num_tasks), slice_bytes_(slice_bytes) {}
  void Set(size_t task, CUdeviceptr data, uint64_t seed) override {
    tasks_[task] = {.data = data, .seed = seed, .copy = std::vector<std::byte>(slice_bytes_)};
  }
  absl::Status Launch(size_t first, size_t count, uint32_t, CUstream stream) override {
    for (size_t task = first; task < first + count; ++task) {
      auto to = reinterpret_cast<CUdeviceptr>(tasks_[task].copy.data());
      size_t bytes = slice_bytes_;
      const CUresult result =
          context_->driver().CopyBatch(&to, &tasks_[task].data, &bytes, 1, stream);
      if (result != CUDA_SUCCESS) return context_->Check(result, "checksums");
    }
    return absl::OkStatus();
  }
  uint64_t result(size_t task) const override {
    return kernels::Checksum(tasks_[task].copy.data(), slice_bytes_, tasks_[task].seed);
  }

 private:
  struct Task {
    CUdeviceptr data = 0;
    uint64_t seed = 0;
    std::vector<std::byte> copy;
  };
  const std::shared_ptr<transfer::CudaContext> context_;
  std::vector<Task> tasks_;
  const uint32_t slice_bytes_;
};

class FakePages final : public PageMemory {
 public:
  FakePages(std::shared_ptr<transfer::CudaContext> context,
            std::shared_ptr<transfer::AddressRange> range) {
    const auto bytes = static_cast<uint64_t>(kLayout.page_bytes());
    memory_ = *transfer::DeviceMemory::Create(std::move(context), kPages * bytes, std::move(range));
    for (uint64_t page = 0; page < kPages; ++page)
      free_.push_back(reinterpret_cast<std::byte*>(memory_->data() + page * bytes));
  }
  absl::StatusOr<Page> Allocate(Fill) override {
    if (free_.empty()) return absl::ResourceExhaustedError("all pages are in use");
    Page page(free_.back(), Return(this));
    free_.pop_back();
    return page;
  }
  size_t num_free() const { return free_.size(); }

 protected:
  void Free(std::byte* page) override { free_.push_back(page); }

 private:
  std::unique_ptr<transfer::DeviceMemory> memory_;
  std::vector<std::byte*> free_;
};

class DevicePages : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> sets) {
    ASSERT_NO_FATAL_FAILURE(daemon_.Start({.sets = std::move(sets)}));
    // Its own: reads and writes through host memory.
    client_ = daemon_.Connect();
    spec_ = SmallSpec(kLayout.num_layers, static_cast<uint32_t>(kLayout.slice_bytes()));
    spec_.block_tokens = static_cast<uint32_t>(kLayout.block_tokens);
    const absl::StatusOr<Namespace> ns = client_->Open("small", spec_);
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    device_->delay_max = absl::Microseconds(300);
    context_ = *transfer::CudaContext::Open(transfer::MakeFakeCudaDriver(device_), 0);
    range_ = *transfer::AddressRange::Reserve(context_, uint64_t{1} << 30);
    memory_.emplace(context_, range_);
    compute_.emplace(
        *transfer::CudaStream::Create(context_, transfer::CudaStream::Priority::kBackground));
    mover_ = *engine::CudaPageMover::Create(
        {.context = context_,
         .addresses = range_,
         .compute_stream = compute_->get(),
         .layout = kLayout,
         .make_checksums = [context = context_](size_t num_tasks, uint32_t slice_bytes) {
           return std::make_unique<CopiedChecksums>(context, num_tasks, slice_bytes);
         }});
    connection_ = engine::StoreConnection::Open({.target = daemon_.target(),
                                                 .namespace_name = "small",
                                                 .spec = spec_,
                                                 .device_slabs = mover_->device_slabs()});
    ASSERT_TRUE(connection_->Use().ok()) << connection_->Use().status();
  }
  std::unique_ptr<StorePages> MakePages(engine::StorePagesOptions options = {}) {
    return std::make_unique<StorePages>(kLayout, connection_, *memory_, *mover_, options);
  }
  void Put(const std::vector<uint32_t>& tokens) {
    const std::vector<BlockHash> hashes = ns_.Hash(tokens);
    ASSERT_TRUE(client_->Put(ns_, hashes, PagesBytes(spec_, hashes)).ok());
  }
  // What a pass does: layer by layer, reads the slices of all loaded blocks on the compute stream.
  // True if all bytes were right. `pages` may come out with fewer blocks.
  bool ReadAllLayers(StorePages& pages, const std::vector<BlockHash>& hashes) {
    const auto slice_bytes = static_cast<size_t>(kLayout.slice_bytes());
    std::vector<std::vector<std::byte>> read(hashes.size(),
                                             std::vector<std::byte>(spec_.shape.page_bytes()));
    int64_t blocks = pages.load().num_blocks;
    for (int64_t layer = 0; layer < kLayout.num_layers; ++layer) {
      blocks = pages.WaitReady(layer);
      transfer::CopyList reads;
      for (int64_t block = 0; block < blocks; ++block) {
        const size_t at = static_cast<size_t>(layer) * slice_bytes;
        reads.Add(reinterpret_cast<CUdeviceptr>(read[static_cast<size_t>(block)].data() + at),
                  reinterpret_cast<CUdeviceptr>(pages.LoadedPage(block)) + at, slice_bytes);
      }
      EXPECT_TRUE(compute_->Copy(reads).ok());
    }
    EXPECT_TRUE(compute_->Synchronize().ok());
    for (int64_t block = 0; block < blocks; ++block) {
      if (read[static_cast<size_t>(block)] != PageBytes(spec_, hashes[static_cast<size_t>(block)]))
        return false;
    }
    return true;
  }
  // Once nothing moves.
  uint64_t PagesIn(v1::Tier which) const {
    const v1::StatusResponse status = daemon_.Status();
    for (const v1::TierStatus& tier : status.tiers()) {
      if (tier.tier() == which && tier.in_flight() == 0) return tier.pages();
    }
    return 0;
  }
  int64_t BlocksFrom(const StorePages& pages, BlockSource source) const {
    return pages.load().blocks_by_source[static_cast<size_t>(source)];
  }
  // Through a client without a device: whatever tier they are in, the bytes are those of the hash.
  void ExpectStored(const std::vector<BlockHash>& hashes) {
    absl::StatusOr<Lease> lease = client_->Acquire(ns_, hashes, HottestTier::kGpu);
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_EQ(lease->matched_blocks(), hashes.size());
    std::vector<std::byte> page(spec_.shape.page_bytes());
    for (uint32_t block = 0; block < hashes.size(); ++block) {
      const absl::Status copied =
          lease->CopyPage(block, page.data(), absl::Now() + absl::Seconds(5));
      ASSERT_TRUE(copied.ok()) << copied;
      ASSERT_EQ(page, PageBytes(spec_, hashes[block])) << "wrong bytes";
    }
  }

  const std::shared_ptr<FakeCudaDevice> device_ = std::make_shared<FakeCudaDevice>(7);
  DaemonProcess daemon_;
  NamespaceSpec spec_;
  Namespace ns_;
  std::unique_ptr<Client> client_;
  std::shared_ptr<transfer::CudaContext> context_;
  std::shared_ptr<transfer::AddressRange> range_;
  std::optional<FakePages> memory_;
  std::optional<transfer::CudaStream> compute_;
  std::unique_ptr<engine::CudaPageMover> mover_;
  std::shared_ptr<engine::StoreConnection> connection_;
};

TEST_F(DevicePages, SlicesFromDramAreThereBeforeTheirLayerIsComputed) {
  Start({"tier.dram.bytes=64MiB"});
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    const std::vector<uint32_t> tokens = Tokens(spec_, 24, seed);
    Put(tokens);
    const auto pages = MakePages();
    EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 24);
    EXPECT_TRUE(ReadAllLayers(*pages, ns_.Hash(tokens))) << "read before it was there";
    EXPECT_TRUE(pages->IsIntact());
    EXPECT_TRUE(pages->IsIntact()) << "asked again after every pass";
    EXPECT_EQ(BlocksFrom(*pages, BlockSource::kDram), 24);
    EXPECT_EQ(pages->load().bytes_loaded, 24 * spec_.shape.page_bytes());
    EXPECT_THAT(pages->load().failures, IsEmpty());
  }
  EXPECT_EQ(memory_->num_free(), kPages);
  EXPECT_EQ(device_->offences, 0u);
}

TEST_F(DevicePages, BlocksThatComeFromDiskAreWaitedForAndCountedThere) {
  Start({"tier.dram.bytes=64MiB", absl::StrCat("tier.nvme.dirs=", daemon_.folder(), "/nvme"),
         "tier.nvme.bytes=256MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 24, 1);
  Put(tokens);
  ASSERT_TRUE(Eventually(absl::Seconds(10), [&] { return PagesIn(v1::TIER_NVME) == 24; }));
  ASSERT_EQ(daemon_.Evict("small", v1::TIER_DRAM).skipped_blocks(), 0u);
  Put(Tokens(spec_, 4, 2));
  const auto pages = MakePages();
  EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 24);
  EXPECT_TRUE(ReadAllLayers(*pages, ns_.Hash(tokens)));
  EXPECT_TRUE(pages->IsIntact());
  EXPECT_EQ(BlocksFrom(*pages, BlockSource::kNvme), 24);
}

TEST_F(DevicePages, BytesThatWereEditedInSharedMemoryAreFoundBeforeTheResultIsUsed) {
  Start({"tier.dram.bytes=64MiB", "tier.gpu.device=host", "tier.gpu.bytes=64MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 8, 1);
  const std::vector<BlockHash> hashes = ns_.Hash(tokens);
  Put(tokens);
  {
    absl::StatusOr<Lease> lease = client_->Acquire(ns_, hashes, HottestTier::kDram);
    ASSERT_TRUE(lease.ok());
    const auto view = lease->WaitReady(5, absl::Now() + absl::Seconds(5));
    ASSERT_TRUE(view.ok());
    const_cast<std::byte*>(view->slot)[3 * kLayout.slice_bytes() + 17] ^= std::byte{1};
  }
  const auto pages = MakePages();
  EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 8);
  EXPECT_FALSE(ReadAllLayers(*pages, hashes));
  EXPECT_FALSE(pages->IsIntact());
  EXPECT_EQ(pages->load().num_blocks, 0);
  EXPECT_THAT(pages->load().failures, Contains(Key("data_loss")));
}

TEST_F(DevicePages, PagesAreSavedWithTheBytesThatTheDeviceWrote) {
  Start({"tier.dram.bytes=64MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 12, 3);
  const std::vector<BlockHash> hashes = ns_.Hash(tokens);
  {
    const auto pages = MakePages();
    EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 0);
    for (int64_t block = 0; block < 12; ++block) {
      const absl::StatusOr<std::byte*> page = pages->NewPage(block);
      ASSERT_TRUE(page.ok()) << page.status();
      const std::vector<std::byte> bytes = PageBytes(spec_, hashes[static_cast<size_t>(block)]);
      transfer::CopyList computed;
      computed.Add(reinterpret_cast<CUdeviceptr>(*page),
                   reinterpret_cast<CUdeviceptr>(bytes.data()), bytes.size());
      ASSERT_TRUE(compute_->Copy(computed).ok());
      ASSERT_TRUE(compute_->Synchronize().ok());
      pages->PublishPage(block, std::span(tokens).subspan(static_cast<size_t>(block) * 16, 16));
    }
    pages->Finish();
    EXPECT_THAT(pages->save_failures(), IsEmpty());
  }
  ExpectStored(hashes);
  EXPECT_EQ(device_->offences, 0u);
}

TEST_F(DevicePages, WhatCameFromDramIsOfferedToTheGpuTier) {
  Start({"tier.dram.bytes=64MiB", "tier.gpu.device=host", "tier.gpu.bytes=64MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 8, 1);
  Put(tokens);
  const auto pages = MakePages();
  pages->LoadPrefix(tokens);
  EXPECT_TRUE(ReadAllLayers(*pages, ns_.Hash(tokens)));
  EXPECT_TRUE(pages->IsIntact());
  pages->Finish();
  EXPECT_EQ(PagesIn(v1::TIER_GPU), 8u);
  ExpectStored(ns_.Hash(tokens));
}

TEST_F(DevicePages, ARequestThatEndsBeforeItsPagesWereCheckedOffersNone) {
  Start({"tier.dram.bytes=64MiB", "tier.gpu.device=host", "tier.gpu.bytes=64MiB"});
  device_->delay_max = absl::Milliseconds(5);
  const std::vector<uint32_t> tokens = Tokens(spec_, 8, 1);
  Put(tokens);
  {
    const auto pages = MakePages();
    EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 8);
  }  // their bytes were still on the way
  EXPECT_EQ(PagesIn(v1::TIER_GPU), 0u);
  ExpectStored(ns_.Hash(tokens));
  EXPECT_EQ(memory_->num_free(), kPages);
}

TEST_F(DevicePages, PagesThatAreGivenBackAreNotWrittenAnyMore) {
  Start({"tier.dram.bytes=64MiB"});
  device_->delay_max = absl::Milliseconds(5);
  const std::vector<uint32_t> tokens = Tokens(spec_, 8, 1);
  Put(tokens);
  {
    const auto pages = MakePages();
    EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 8);
  }
  // The next sequence's, who writes them.
  const auto page_bytes = static_cast<size_t>(kLayout.page_bytes());
  const std::vector<std::byte> theirs(page_bytes, std::byte{0x3A});
  std::vector<std::vector<std::byte>> read(8, std::vector<std::byte>(page_bytes));
  std::vector<PageMemory::Page> pages;
  transfer::CopyList writes, reads;
  for (size_t i = 0; i < read.size(); ++i) {
    pages.push_back(*memory_->Allocate(PageMemory::Fill::kNone));
    const auto page = reinterpret_cast<CUdeviceptr>(pages.back().get());
    writes.Add(page, reinterpret_cast<CUdeviceptr>(theirs.data()), page_bytes);
    reads.Add(reinterpret_cast<CUdeviceptr>(read[i].data()), page, page_bytes);
  }
  ASSERT_TRUE(compute_->Copy(writes).ok() && compute_->Synchronize().ok());
  absl::SleepFor(absl::Milliseconds(300));  // longer than the load would have taken
  ASSERT_TRUE(compute_->Copy(reads).ok() && compute_->Synchronize().ok());
  for (const std::vector<std::byte>& bytes : read) EXPECT_EQ(bytes, theirs);
}

TEST_F(DevicePages, ADeviceThatFailsIsAMissAndNothingHangs) {
  Start({"tier.dram.bytes=64MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 8, 1);
  Put(tokens);
  const auto pages = MakePages();
  device_->has_failed = true;
  pages->LoadPrefix(tokens);
  EXPECT_EQ(pages->WaitReady(0), 0);
  EXPECT_THAT(pages->load().failures, Contains(Key("unavailable")));
}

TEST_F(DevicePages, ADaemonThatDiesWhileItsPagesAreUsedIsNoWrongByte) {
  Start({"tier.dram.bytes=64MiB"});
  const std::vector<uint32_t> tokens = Tokens(spec_, 16, 1);
  Put(tokens);
  const auto pages = MakePages({.save_deadline = absl::Seconds(1)});
  EXPECT_EQ(pages->LoadPrefix(tokens).num_blocks, 16);
  daemon_.KillHard();
  const bool is_right = ReadAllLayers(*pages, ns_.Hash(tokens));
  EXPECT_TRUE(is_right || !pages->IsIntact()) << "wrong bytes that nobody noticed";
  const absl::Time start = absl::Now();
  pages->Finish();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

}  // namespace
}  // namespace kvstore::testing
