#include "engine_adapter/llama_cpu/work_space.h"

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Row strides that are powers of two would put the rows of a register tile into the same cache set.
constexpr int64_t kStridePad = 16;
constexpr int64_t kPartFloats = 16;  // parts start at cache lines

}  // namespace

void WorkSpace::AddRows(Activation& into, int64_t rows, int64_t columns) {
  into.stride = RoundUp(columns, 16) + kStridePad;
  AddFloats(into.data, rows * into.stride);
}

void WorkSpace::AddFloats(float*& into, int64_t count) { parts_.push_back({&into, count}); }

absl::Status WorkSpace::Allocate() {
  int64_t total = 0;
  for (const Part& part : parts_) total += RoundUp(part.floats, kPartFloats);
  ASSIGN_OR_RETURN(memory_, AlignedBuffer::Allocate(static_cast<size_t>(total) * sizeof(float)));
  auto* next = reinterpret_cast<float*>(memory_.data());
  for (const Part& part : parts_) {
    *part.data = next;
    next += RoundUp(part.floats, kPartFloats);
  }
  parts_.clear();
  return absl::OkStatus();
}

}  // namespace kvstore::engine
