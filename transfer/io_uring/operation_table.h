// Which operation a completion belongs to. A tag is (generation, index), and the generation changes
// with every start, also when an operation is started again: a completion that comes twice, late,
// or for an index that was reused in between finds another generation and is dropped, so no
// operation ever ends by another one's result or by its own from an earlier start.
//
// Confined to the progress thread; fixed size, no allocation after construction.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "transfer/io_uring/file_mover.h"

namespace kvstore::transfer {

// An operation between Submit() and `done`.
//
//   kWaiting --> kInKernel --> kArrived --> free          EAGAIN, EINTR, short: kInKernel ->
//   kWaiting
//       \____________\____________________> free (failed)
struct ActiveOperation {
  enum class State : uint8_t { kFree, kWaiting, kInKernel, kArrived };
  State state = State::kFree;
  bool is_prepared = false;
  bool cancel_asked = false;
  bool is_in_pieces = false;  // and counted in FileMover::Impl::pieces_bytes_
  uint32_t generation = 0;
  uint32_t retries = 0;
  int buffer_index = -1;
  uint64_t moved_bytes = 0;
  uint64_t position = 0;  // in the file, from operation.offset on: where `parts` begin
  iovec parts[2] = {};    // what is left to move; of the present piece, if there are pieces
  int num_parts = 0;
  FileOperation operation;
};

class OperationTable {
 public:
  explicit OperationTable(uint32_t size) : slots_(size) {
    for (uint32_t i = size; i > 0; --i) free_.push_back(i - 1);
  }

  // Requires !full().
  uint32_t Add(FileOperation operation) {
    const uint32_t index = free_.back();
    free_.pop_back();
    ActiveOperation& slot = slots_[index];
    const uint32_t generation = slot.generation + 1;
    slot = ActiveOperation{};
    slot.generation = generation;
    slot.state = ActiveOperation::State::kWaiting;
    slot.operation = std::move(operation);
    return index;
  }
  void Remove(uint32_t index) {
    slots_[index].state = ActiveOperation::State::kFree;
    slots_[index].operation = FileOperation{};
    free_.push_back(index);
  }

  // Before each start.
  void Renew(uint32_t index) { ++slots_[index].generation; }

  bool full() const { return free_.empty(); }
  uint32_t size() const { return static_cast<uint32_t>(slots_.size() - free_.size()); }
  ActiveOperation& at(uint32_t index) { return slots_[index]; }
  // 31 bits of generation: the top bit is the backend's.
  uint64_t Tag(uint32_t index) const {
    return (uint64_t{slots_[index].generation & 0x7fffffff} << 32) | index;
  }
  // Index of the operation in the kernel that `tag` names, or null.
  ActiveOperation* Find(uint64_t tag) {
    const auto index = static_cast<uint32_t>(tag);
    if (index >= slots_.size() || Tag(index) != tag) return nullptr;
    ActiveOperation& slot = slots_[index];
    return slot.state == ActiveOperation::State::kInKernel ? &slot : nullptr;
  }

 private:
  std::vector<ActiveOperation> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace kvstore::transfer
