#include "kvstore/base/namespace_spec.h"

#include <openssl/sha.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/page_trailer.h"

namespace kvstore {
namespace {

constexpr char kMagic[] = "kvns1";  // version of the canonical encoding; on disk

// Field tags of the canonical encoding. On disk, do not renumber.
enum Tag : uint8_t {
  kModel = 1,
  kWeightsRevision,
  kAdapter,
  kKvDtype,
  kCodec,
  kLayout,
  kLayoutVersion,
  kNumerics,
  kBlockTokens,
  kNumSlices,
  kSliceBytes,
  kTensorRank,
  kTensorSize,
  kPipelineRank,
  kPipelineSize,
  kContextRank,
  kContextSize,
  kTenant,
  kSalt,
};

// Calls f(tag, field) for every field of the spec, in tag order: the one list that encoding and
// decoding share.
template <typename Spec, typename F>
void ForEachField(Spec& s, F&& f) {
  f(kModel, s.model);
  f(kWeightsRevision, s.weights_revision);
  f(kAdapter, s.adapter);
  f(kKvDtype, s.kv_dtype);
  f(kCodec, s.codec);
  f(kLayout, s.layout);
  f(kLayoutVersion, s.layout_version);
  f(kNumerics, s.numerics);
  f(kBlockTokens, s.block_tokens);
  f(kNumSlices, s.shape.num_slices);
  f(kSliceBytes, s.shape.slice_bytes);
  f(kTensorRank, s.tensor_rank);
  f(kTensorSize, s.tensor_size);
  f(kPipelineRank, s.pipeline_rank);
  f(kPipelineSize, s.pipeline_size);
  f(kContextRank, s.context_rank);
  f(kContextSize, s.context_size);
  f(kTenant, s.tenant);
  f(kSalt, s.salt);
}

void AppendU32(std::string& out, uint32_t v) {
  for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(v >> shift);
}

struct Encoder {
  std::string out = kMagic;
  void operator()(Tag tag, const std::string& value) {
    out += static_cast<char>(tag);
    AppendU32(out, static_cast<uint32_t>(value.size()));
    out += value;
  }
  void operator()(Tag tag, uint32_t value) {
    out += static_cast<char>(tag);
    AppendU32(out, 4);
    AppendU32(out, value);
  }
};

// Reads fields in tag order; `ok` turns false at the first byte that is not what Encoder wrote.
struct Decoder {
  std::string_view in;
  bool ok = true;

  std::string_view Field(Tag tag) {
    if (!ok || in.size() < 5 || static_cast<uint8_t>(in[0]) != tag) return Fail();
    const uint32_t bytes = U32(in.substr(1));
    in.remove_prefix(5);
    if (bytes > in.size()) return Fail();
    std::string_view value = in.substr(0, bytes);
    in.remove_prefix(bytes);
    return value;
  }
  void operator()(Tag tag, std::string& value) { value = std::string(Field(tag)); }
  void operator()(Tag tag, uint32_t& value) {
    std::string_view field = Field(tag);
    if (field.size() == 4) {
      value = U32(field);
    } else {
      ok = false;
    }
  }

 private:
  std::string_view Fail() {
    ok = false;
    return {};
  }
  static uint32_t U32(std::string_view s) {
    uint32_t v = 0;
    for (int i = 0; i < 4; ++i) v |= uint32_t{static_cast<uint8_t>(s[i])} << (8 * i);
    return v;
  }
};

absl::Status Bad(const char* field, const std::string& value, const char* valid) {
  return absl::InvalidArgumentError(
      absl::StrCat("namespace spec: ", field, " is ", value, "; valid: ", valid));
}

absl::Status CheckText(const char* field, const std::string& value, bool may_be_empty) {
  if (value.empty() && !may_be_empty) return Bad(field, "empty", "1 to 256 bytes");
  if (value.size() > kSpecStringBytesMax) {
    return Bad(field, absl::StrCat(value.size(), " bytes long"), "at most 256 bytes");
  }
  return absl::OkStatus();
}

absl::Status CheckRank(const char* field, uint32_t rank, uint32_t size) {
  if (size == 0 || size > 4096 || rank >= size) {
    return Bad(field, absl::StrCat("rank ", rank, " of ", size), "rank below size, size 1 to 4096");
  }
  return absl::OkStatus();
}

absl::Status CheckShape(const PageShape& shape) {
  if (shape.num_slices == 0 || shape.num_slices > kNumSlicesMax) {
    return Bad("slices", absl::StrCat(shape.num_slices), "1 to 1024");
  }
  if (shape.slice_bytes == 0)
    return Bad("slice_bytes", "0", "1 or more, with a slot of at most 256 MiB");
  if (shape.slot_bytes() > kSlotBytesMax) {
    return Bad("slices x slice_bytes", absl::StrCat(shape.page_bytes(), " bytes"),
               "a slot of at most 256 MiB");
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t PageShape::trailer_bytes() const { return sizeof(PageTrailer) + uint64_t{8} * num_slices; }

uint64_t PageShape::slot_bytes() const {
  return (TrailerOffset(*this) + trailer_bytes() + 4095) & ~uint64_t{4095};
}

absl::Status NamespaceSpec::Validate() const {
  const struct {
    const char* name;
    const std::string& value;
    bool may_be_empty;
  } texts[] = {{"model", model, false},      {"revision", weights_revision, true},
               {"adapter", adapter, true},   {"dtype", kv_dtype, false},
               {"codec", codec, false},      {"layout", layout, false},
               {"numerics", numerics, true}, {"tenant", tenant, false},
               {"salt", salt, true}};
  for (const auto& text : texts) {
    if (absl::Status s = CheckText(text.name, text.value, text.may_be_empty); !s.ok()) return s;
  }
  if (codec != "raw") return Bad("codec", codec, "raw");
  if (block_tokens == 0 || block_tokens > kBlockTokensMax) {
    return Bad("block_tokens", absl::StrCat(block_tokens), "1 to 65536");
  }
  if (absl::Status s = CheckShape(shape); !s.ok()) return s;
  if (absl::Status s = CheckRank("tensor", tensor_rank, tensor_size); !s.ok()) return s;
  if (absl::Status s = CheckRank("pipeline", pipeline_rank, pipeline_size); !s.ok()) return s;
  return CheckRank("context", context_rank, context_size);
}

std::string NamespaceSpec::Encode() const {
  Encoder encoder;
  ForEachField(*this, encoder);
  return std::move(encoder.out);
}

absl::StatusOr<NamespaceSpec> NamespaceSpec::Decode(std::string_view bytes) {
  if (!bytes.starts_with(kMagic)) return absl::DataLossError("namespace spec: unknown encoding");
  Decoder decoder{bytes.substr(sizeof kMagic - 1)};
  NamespaceSpec spec;
  ForEachField(spec, decoder);
  if (!decoder.ok || !decoder.in.empty())
    return absl::DataLossError("namespace spec: damaged encoding");
  if (absl::Status s = spec.Validate(); !s.ok()) return absl::DataLossError(s.message());
  return spec;
}

Fingerprint NamespaceSpec::ComputeFingerprint() const {
  const std::string canonical = Encode();
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(canonical.data()), canonical.size(), digest);
  Fingerprint f;
  std::memcpy(f.bytes.data(), digest, Fingerprint::kBytes);
  return f;
}

}  // namespace kvstore
