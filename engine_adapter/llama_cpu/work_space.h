// WorkSpace is the memory that a forward pass computes in: one allocation at the start, cut into
// matrices of rows. Nothing is allocated during a pass.
//
// Threads: externally synchronised; the parts are plain memory.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <vector>

#include "engine_adapter/paging/aligned_buffer.h"

namespace kvstore::engine {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// Rows of float32 with a padded stride. A view: it owns nothing.
struct Activation {
  float* data = nullptr;
  int64_t stride = 0;

  float* row(int64_t index) const { return data + index * stride; }
  // The same rows from a column, or from a row, on.
  Activation FromColumn(int64_t column) const { return {data + column, stride}; }
  Activation FromRow(int64_t index) const { return {row(index), stride}; }
};

class WorkSpace {
 public:
  // Notes what is wanted; `into` stays where it is and is set by Allocate().
  void AddRows(Activation& into, int64_t rows, int64_t columns);
  void AddFloats(float*& into, int64_t count);

  // Once, after everything is added. Errors: ResourceExhausted.
  absl::Status Allocate();

 private:
  struct Part {
    float** data;
    int64_t floats;
  };

  std::vector<Part> parts_;
  AlignedBuffer memory_;
};

}  // namespace kvstore::engine
