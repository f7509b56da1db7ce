#include "transfer/memory/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "transfer/memory/generation_table.h"

namespace kvstore::transfer {
namespace {

constexpr uint64_t kBytes = uint64_t{4} << 20;

SealedMemory MustCreate(SealedMemory::Seal seal) {
  absl::StatusOr<SealedMemory> memory =
      SealedMemory::Create({.name = "kvstore-test", .bytes = kBytes, .seal = seal});
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

uint64_t AllocatedBytes(int fd) {
  struct stat status = {};
  EXPECT_EQ(fstat(fd, &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

TEST(SealedMemory, RefusesSizesThatAreNoPages) {
  EXPECT_TRUE(absl::IsInvalidArgument(SealedMemory::Create({.name = "x", .bytes = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SealedMemory::Create({.name = "x", .bytes = 4097}).status()));
}

TEST(SealedMemory, ReadOnlyDescriptorSeesWhatTheOwnerWrites) {
  const SealedMemory memory = MustCreate(SealedMemory::Seal::kResize);
  absl::StatusOr<UniqueFd> fd = memory.Export(MemoryAccess::kReadOnly);
  ASSERT_TRUE(fd.ok());
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd->get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::memset(memory.data() + 5000, 0x5A, 10);
  EXPECT_EQ(static_cast<const unsigned char*>(mapped)[5003], 0x5A);
  munmap(mapped, kBytes);
}

TEST(SealedMemory, CarriesAllSealsAndNoAccessForOthers) {
  const SealedMemory memory = MustCreate(SealedMemory::Seal::kResize);
  const SealedMemory table = MustCreate(SealedMemory::Seal::kFutureWrite);
  const UniqueFd fd = *memory.Export(MemoryAccess::kReadWrite);
  const UniqueFd table_fd = *table.Export(MemoryAccess::kReadOnly);
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  EXPECT_EQ(fcntl(fd.get(), F_GET_SEALS) & kSeals, kSeals);
  EXPECT_EQ(fcntl(table_fd.get(), F_GET_SEALS) & (kSeals | F_SEAL_FUTURE_WRITE),
            kSeals | F_SEAL_FUTURE_WRITE);
  struct stat status = {};
  ASSERT_EQ(fstat(fd.get(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0400u);
  EXPECT_EQ(fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(SealedMemory, IsKeptOutOfCoreDumps) {
  const SealedMemory memory = MustCreate(SealedMemory::Seal::kResize);
  std::ifstream smaps("/proc/self/smaps");
  std::string line, flags;
  bool is_inside = false;
  while (std::getline(smaps, line)) {
    if (line.find("kvstore-test") != std::string::npos) is_inside = true;
    if (is_inside && line.rfind("VmFlags:", 0) == 0) {
      flags = line;
      break;
    }
  }
  EXPECT_NE(flags.find(" dd"), std::string::npos) << flags;
}

TEST(SealedMemory, PopulateAllocatesAndDiscardFreesForEverybody) {
  const SealedMemory memory = MustCreate(SealedMemory::Seal::kResize);
  const UniqueFd fd = *memory.Export(MemoryAccess::kReadOnly);
  EXPECT_EQ(AllocatedBytes(fd.get()), 0u);
  ASSERT_TRUE(memory.Populate(0, kBytes / 2).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), kBytes / 2);
  ASSERT_TRUE(memory.Populate(kBytes / 2, kBytes / 2).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), kBytes);
  std::memset(memory.data(), 0x5A, kBytes);
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(static_cast<const unsigned char*>(mapped)[0], 0x5A);
  ASSERT_TRUE(memory.Discard().ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), 0u);
  EXPECT_EQ(static_cast<const unsigned char*>(mapped)[0], 0);
  munmap(mapped, kBytes);
}

TEST(SealedMemory, FutureWriteMemoryIsWritableOnlyThroughItsOwner) {
  const SealedMemory memory = MustCreate(SealedMemory::Seal::kFutureWrite);
  std::memset(memory.data(), 1, kBytes);
  EXPECT_TRUE(absl::IsPermissionDenied(memory.Export(MemoryAccess::kReadWrite).status()));
  const UniqueFd fd = *memory.Export(MemoryAccess::kReadOnly);
  // Even the owner's uid, who may reopen it, gets nothing that writes.
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  (void)fchmod(fd.get(), 0600);
  const UniqueFd reopened(open(path.c_str(), O_RDWR));
  const int target = reopened.is_open() ? reopened.get() : fd.get();
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, target, 0), MAP_FAILED);
  EXPECT_EQ(pwrite(target, "x", 1, 0), -1);
}

TEST(GenerationTable, HoldsOneCellForEach4KiB) {
  absl::StatusOr<GenerationTable> table = GenerationTable::Create(kBytes);
  ASSERT_TRUE(table.ok()) << table.status();
  for (uint64_t offset = 0; offset < kBytes; offset += 4096) table->Store(offset, offset + 1);
  const UniqueFd fd = *table->Export();
  const uint64_t bytes = kBytes / 4096 * 8;
  const void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  for (uint64_t offset = 0; offset < kBytes; offset += 4096) {
    ASSERT_EQ(table->Load(offset), offset + 1);
    ASSERT_EQ(static_cast<const uint64_t*>(mapped)[offset / 4096], offset + 1);
  }
  munmap(const_cast<void*>(mapped), bytes);
}

}  // namespace
}  // namespace kvstore::transfer
