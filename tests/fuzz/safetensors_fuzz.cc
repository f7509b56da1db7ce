// A weight file from the internet.
//
//   input: how u8 (1: the header's length is made right); header text up to a zero byte, data; or
//   the file as it is
//
// Promises: every tensor lies in the file, is as long as its shape says, is aligned, and overlaps
// no other; its elements can be read.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine_adapter/llama/safetensors.h"
#include "kvstore/base/unique_fd.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::engine {
namespace {

void CheckTensors(const SafetensorsFile& file) {
  const std::byte* const begin = file.contents().data();
  const std::byte* const end = begin + file.contents().size();
  size_t total = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    REQUIRE(file.Find(name) == &tensor);
    REQUIRE(tensor.address >= begin + 8 && tensor.address <= end);
    REQUIRE(tensor.num_bytes <= static_cast<size_t>(end - tensor.address));
    REQUIRE(reinterpret_cast<uintptr_t>(tensor.address) % DTypeBytes(tensor.dtype) == 0);
    REQUIRE(!tensor.shape.empty() && tensor.shape.size() <= 8);
    int64_t elements = 1;
    for (const int64_t dimension : tensor.shape) {
      REQUIRE(dimension > 0 && !__builtin_mul_overflow(elements, dimension, &elements));
    }
    REQUIRE(elements == tensor.num_elements());
    std::vector<float> values(static_cast<size_t>(elements));
    CopyAsFloat(tensor, 0, values);
    total += tensor.num_bytes;
  }
  REQUIRE(total <= file.contents().size());
}

}  // namespace
}  // namespace kvstore::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  std::string content;
  if ((input.Take<uint8_t>() & 1) != 0) {
    const std::string_view header = input.TakeText();
    const uint64_t header_bytes = header.size();
    content.assign(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
    content += header;
  }
  content += input.TakeRest();
  static const UniqueFd* const file = new UniqueFd(memfd_create("fuzz", MFD_CLOEXEC));
  static const std::string* const path =
      new std::string(absl::StrCat("/proc/self/fd/", file->get()));
  REQUIRE(ftruncate(file->get(), 0) == 0);
  REQUIRE(pwrite(file->get(), content.data(), content.size(), 0) ==
          static_cast<ssize_t>(content.size()));
  const auto opened = engine::SafetensorsFile::Open(*path);
  if (opened.ok()) engine::CheckTensors(*opened);
  if (!opened.ok()) REQUIRE(opened.status().message().size() < 1024);
  return 0;
}
