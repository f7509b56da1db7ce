#include "kvstore/client/cuda_slabs.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/status_macros.h"
#include "transfer/cuda/copy_engine.h"
#include "transfer/cuda/cuda_context.h"
#include "transfer/cuda/device_memory.h"
#include "transfer/cuda/loaded_driver.h"

namespace kvstore::client {
namespace {

transfer::DeviceAccess DeviceAccessOf(MemoryAccess access) {
  return access == MemoryAccess::kReadWrite ? transfer::DeviceAccess::kReadWrite
                                            : transfer::DeviceAccess::kReadOnly;
}

// A device of this process. Shared by the slabs imported from it, which may outlive each other.
struct CudaPart {
  MonotonicClock clock;
  std::shared_ptr<transfer::CudaContext> context;  // shared with the memory
  std::shared_ptr<transfer::AddressRange> range;   // null: slabs lie anywhere
  std::unique_ptr<transfer::CopyEngine> engine;
};

class CudaSlab final : public DeviceSlab {
 public:
  CudaSlab(std::shared_ptr<CudaPart> part, std::unique_ptr<transfer::DeviceMemory> memory)
      : part_(std::move(part)), memory_(std::move(memory)) {}

  uint64_t address() const override { return memory_->data(); }
  absl::Status Read(uint64_t offset, std::byte* to, uint64_t bytes) const override {
    return Copy(transfer::CopyDirection::kToHost, offset,
                {reinterpret_cast<CUdeviceptr>(to), memory_->data() + offset, bytes});
  }
  absl::Status Write(uint64_t offset, const std::byte* from, uint64_t bytes) const override {
    return Copy(transfer::CopyDirection::kToDevice, offset,
                {memory_->data() + offset, reinterpret_cast<CUdeviceptr>(from), bytes});
  }

 private:
  absl::Status Copy(transfer::CopyDirection direction, uint64_t offset,
                    transfer::CopyPiece piece) const {
    if (offset > memory_->bytes() || piece.bytes > memory_->bytes() - offset) {
      return absl::InvalidArgumentError(
          absl::StrCat(piece.bytes, " bytes at ", offset, " of a slab of ", memory_->bytes()));
    }
    absl::Notification ended;
    absl::Status result;
    transfer::CopyOperation operation = {.direction = direction};
    operation.pieces.push_back(piece);
    operation.done = [&](absl::Status status) {
      result = std::move(status);
      ended.Notify();
    };
    RETURN_IF_ERROR(part_->engine->Submit(std::move(operation)).status());
    ended.WaitForNotification();
    return result;
  }

  const std::shared_ptr<CudaPart> part_;
  const std::unique_ptr<transfer::DeviceMemory> memory_;
};

class CudaSlabs final : public DeviceSlabs {
 public:
  explicit CudaSlabs(std::shared_ptr<CudaPart> part) : part_(std::move(part)) {}

  absl::StatusOr<std::unique_ptr<DeviceSlab>> Import(UniqueFd slab, uint64_t bytes,
                                                     MemoryAccess access) override {
    ASSIGN_OR_RETURN(std::unique_ptr<transfer::DeviceMemory> memory,
                     transfer::DeviceMemory::Import(part_->context, slab, bytes,
                                                    DeviceAccessOf(access), part_->range));
    return std::unique_ptr<DeviceSlab>(std::make_unique<CudaSlab>(part_, std::move(memory)));
  }
  void RegisterHost(std::byte* data, uint64_t bytes, MemoryAccess access) override {
    if (!part_->context->Bind().ok()) return;
    (void)part_->context->driver().RegisterHost(data, bytes, DeviceAccessOf(access));
  }
  // Memory that was not registered is refused, and that is all.
  void UnregisterHost(std::byte* data) override {
    if (part_->context->Bind().ok()) (void)part_->context->driver().UnregisterHost(data);
  }

 private:
  const std::shared_ptr<CudaPart> part_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(int device) {
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::CudaDriver> driver, transfer::LoadCudaDriver());
  ASSIGN_OR_RETURN(std::shared_ptr<transfer::CudaContext> context,
                   transfer::CudaContext::Open(std::move(driver), device));
  return OpenCudaSlabs(std::move(context), nullptr);
}

absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(
    std::shared_ptr<transfer::CudaContext> context, std::shared_ptr<transfer::AddressRange> range) {
  auto part = std::make_shared<CudaPart>();
  part->context = std::move(context);
  part->range = std::move(range);
  ASSIGN_OR_RETURN(part->engine, transfer::CopyEngine::Create({.name = "kv-client-gpu"},
                                                              part->context, part->clock));
  return std::shared_ptr<DeviceSlabs>(std::make_shared<CudaSlabs>(std::move(part)));
}

}  // namespace kvstore::client
