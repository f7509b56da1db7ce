#include "engine_adapter/llama/safetensors.h"

#include <absl/cleanup/cleanup.h>
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "engine_adapter/json/json_file.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "weights are read in place");

constexpr size_t kLengthBytes = 8;
constexpr size_t kDimensionsMax = 8;

absl::Status BadFile(const std::filesystem::path& path, std::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", AbslView(problem)));
}

absl::Status BadTensor(const std::filesystem::path& path, std::string_view name,
                       std::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(
      path.string(), ": tensor \"", AbslView(name.substr(0, 200)), "\": ", AbslView(problem)));
}

std::optional<DType> DTypeOfName(const json& value) {
  if (value == "F32") return DType::kF32;
  if (value == "F16") return DType::kF16;
  if (value == "BF16") return DType::kBF16;
  return std::nullopt;
}

struct Range {
  uint64_t begin;
  uint64_t end;
  const std::string* name;
};

// Checks one header value and fills `tensor`, whose bytes lie in `data` (what follows the header).
absl::StatusOr<Range> ReadTensor(const std::filesystem::path& path, const std::string& name,
                                 const json& fields, std::span<const std::byte> data,
                                 TensorView& tensor) {
  if (!fields.is_object() || !fields.contains("dtype") || !fields.contains("shape") ||
      !fields.contains("data_offsets")) {
    return BadTensor(path, name, "needs dtype, shape and data_offsets");
  }
  const std::optional<DType> dtype = DTypeOfName(fields["dtype"]);
  if (!dtype.has_value()) {
    return BadTensor(path, name, "its dtype is not one of F32, F16, BF16");
  }
  tensor.dtype = *dtype;

  const json& shape = fields["shape"];
  if (!shape.is_array() || shape.empty() || shape.size() > kDimensionsMax) {
    return BadTensor(path, name, "its shape is not a list of 1 to 8 dimensions");
  }
  uint64_t num_bytes = DTypeBytes(*dtype);
  for (const json& dimension : shape) {
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() == 0 ||
        __builtin_mul_overflow(num_bytes, dimension.get<uint64_t>(), &num_bytes) ||
        num_bytes > INT64_MAX) {
      return BadTensor(path, name, "its shape has a dimension that is not positive or too large");
    }
    tensor.shape.push_back(static_cast<int64_t>(dimension.get<uint64_t>()));
  }

  const json& offsets = fields["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return BadTensor(path, name, "its data_offsets are not [begin, end]");
  }
  const Range range{offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>(), &name};
  if (range.begin > range.end || range.end > data.size()) {
    return BadTensor(path, name,
                     absl::StrCat("its data_offsets [", range.begin, ", ", range.end,
                                  "] leave the ", data.size(), " bytes of the file"));
  }
  if (range.end - range.begin != num_bytes) {
    return BadTensor(path, name,
                     absl::StrCat("its shape needs ", num_bytes, " bytes, its data_offsets hold ",
                                  range.end - range.begin));
  }
  tensor.address = data.data() + range.begin;
  tensor.num_bytes = static_cast<size_t>(num_bytes);
  if (reinterpret_cast<uintptr_t>(tensor.address) % DTypeBytes(*dtype) != 0) {
    return BadTensor(path, name, "its bytes are not aligned to its dtype");
  }
  return range;
}

absl::Status CheckNoOverlap(const std::filesystem::path& path, std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) {
      return BadTensor(path, *ranges[i].name,
                       absl::StrCat("overlaps tensor \"", *ranges[i - 1].name, "\""));
    }
  }
  return absl::OkStatus();
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: fraction * 2^-24, exact in float32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (fraction << 13));
}

}  // namespace

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
  }
  return "unknown";
}

size_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

void CopyAsFloat(const TensorView& tensor, int64_t first_element, std::span<float> out) {
  const std::byte* source =
      tensor.address + static_cast<size_t>(first_element) * DTypeBytes(tensor.dtype);
  if (tensor.dtype == DType::kF32) {
    std::memcpy(out.data(), source, out.size_bytes());
    return;
  }
  const auto* narrow = reinterpret_cast<const uint16_t*>(source);
  if (tensor.dtype == DType::kBF16) {
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = std::bit_cast<float>(static_cast<uint32_t>(narrow[i]) << 16);
    }
    return;
  }
  for (size_t i = 0; i < out.size(); ++i) out[i] = HalfToFloat(narrow[i]);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, path.string());
  }
  const absl::Cleanup close_fd = [fd] { ::close(fd); };
  struct stat status;
  if (::fstat(fd, &status) != 0) return absl::ErrnoToStatus(errno, path.string());
  if (!S_ISREG(status.st_mode)) return BadFile(path, "not a regular file");
  const auto num_bytes = static_cast<size_t>(status.st_size);
  if (num_bytes < kLengthBytes) return BadFile(path, "too short for a safetensors header");

  void* address = ::mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, path.string());
  SafetensorsFile file;  // owns the mapping from here on
  file.path_ = path;
  file.address_ = static_cast<const std::byte*>(address);
  file.num_bytes_ = num_bytes;

  uint64_t header_bytes;
  std::memcpy(&header_bytes, file.address_, kLengthBytes);
  if (header_bytes > kHeaderBytesMax || header_bytes > num_bytes - kLengthBytes) {
    return BadFile(
        path, absl::StrCat("its header claims ", header_bytes, " bytes; the file has ",
                           num_bytes - kLengthBytes, " and ", kHeaderBytesMax, " are allowed"));
  }
  const std::string_view header_text(reinterpret_cast<const char*>(file.address_) + kLengthBytes,
                                     header_bytes);
  ASSIGN_OR_RETURN(const json header, ParseJsonObject(header_text, path.string()));
  if (header.size() > kTensorsMax) return BadFile(path, "has more than 100000 tensors");

  const auto data = file.contents().subspan(kLengthBytes + header_bytes);
  std::vector<Range> ranges;
  for (const auto& [name, fields] : header.items()) {
    if (name == "__metadata__") continue;
    TensorView tensor;
    const auto it = file.tensors_.emplace(name, TensorView{}).first;
    ASSIGN_OR_RETURN(const Range range, ReadTensor(path, it->first, fields, data, tensor));
    it->second = std::move(tensor);
    ranges.push_back(range);
  }
  RETURN_IF_ERROR(CheckNoOverlap(path, ranges));
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      address_(std::exchange(other.address_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      tensors_(std::move(other.tensors_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(address_, other.address_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(tensors_, other.tensors_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (address_ != nullptr) ::munmap(const_cast<std::byte*>(address_), num_bytes_);
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace kvstore::engine
