// SafetensorsFile maps one `.safetensors` file and hands out its tensors as views into the mapping.
//
// Format: u64 little-endian header length, JSON header {name: {dtype, shape, data_offsets:
// [begin, end]}}, then the bytes; offsets count from the end of the header.
// Threads: immutable after Open(); views may be read from any thread.
// Ownership: views point into the mapping and die with the SafetensorsFile. Trust:   the header
// is untrusted and wholly checked at Open(): no view leaves the file, none overlap, sizes agree
// with shapes. The mapping is shared with the file: whoever truncates it under a running engine
// kills that engine (SIGBUS); replace model files by rename.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvstore::engine {

enum class DType { kF32, kF16, kBF16 };

std::string_view DTypeName(DType dtype);  // "F32", "F16", "BF16"
size_t DTypeBytes(DType dtype);

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;          // outermost first; every dimension > 0
  const std::byte* address = nullptr;  // aligned to DTypeBytes(dtype); little-endian values
  size_t num_bytes = 0;

  int64_t num_elements() const { return static_cast<int64_t>(num_bytes / DTypeBytes(dtype)); }
};

// Widens `count` elements from `first_element` on into float32, exactly. Requires: the range lies
// inside the tensor, out.size() == count.
void CopyAsFloat(const TensorView& tensor, int64_t first_element, std::span<float> out);

class SafetensorsFile {
 public:
  static constexpr size_t kHeaderBytesMax = 16 << 20;
  static constexpr size_t kTensorsMax = 100'000;

  // Errors: NotFound; InvalidArgument, the file breaks the format or uses another dtype: the
  // message names the file and the tensor.
  static absl::StatusOr<SafetensorsFile> Open(const std::filesystem::path& path);

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  // Null if there is no tensor of that name.
  const TensorView* Find(std::string_view name) const;

  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> contents() const { return {address_, num_bytes_}; }  // the whole file

 private:
  SafetensorsFile() = default;

  std::filesystem::path path_;
  const std::byte* address_ = nullptr;
  size_t num_bytes_ = 0;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace kvstore::engine
