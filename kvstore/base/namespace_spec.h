// What must agree before two KV pages may be exchanged, and the shape of those pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"

namespace kvstore {

// Geometry of one page. Slots (a page and its trailer, page_trailer.h) are what tiers allocate.
struct PageShape {
  uint32_t num_slices = 0;   // one a layer
  uint32_t slice_bytes = 0;  // equal for all slices

  uint64_t page_bytes() const { return uint64_t{num_slices} * slice_bytes; }
  // Bytes of the trailer that follows the page in its slot.
  uint64_t trailer_bytes() const;
  // Page and trailer, rounded up to 4 KiB so that every slot can be moved with O_DIRECT.
  uint64_t slot_bytes() const;
  friend bool operator==(const PageShape&, const PageShape&) = default;
};

// Immutable once opened. Two specs that differ in one field never see each other's pages: every
// field goes into the fingerprint.
struct NamespaceSpec {
  std::string model;             // model id, 1 to 256 bytes
  std::string weights_revision;  // digest of config and weight files
  std::string adapter;           // LoRA id; empty: none
  std::string kv_dtype;          // "bf16", "f16", "f32", "fp8_e4m3", ...; opaque to the store
  std::string codec = "raw";
  std::string layout = "hnd";  // name of the order of elements in a slice
  uint32_t layout_version = 1;
  std::string numerics;       // class of kernels whose KV bits are interchangeable
  uint32_t block_tokens = 0;  // 1 to 65536
  PageShape shape;
  uint32_t tensor_rank = 0, tensor_size = 1;
  uint32_t pipeline_rank = 0, pipeline_size = 1;
  uint32_t context_rank = 0, context_size = 1;
  std::string tenant = "default";
  std::string salt;  // separates caches inside one tenant; secret-like, never logged

  // Errors: InvalidArgument naming the field, its value and what is valid.
  absl::Status Validate() const;
  // SHA-256 over the canonical encoding (field tag, length, bytes; integers little-endian), first
  // 128 bits.
  Fingerprint ComputeFingerprint() const;
  // Canonical bytes: what the fingerprint is taken over and what durable tiers keep. Golden test:
  // namespace_spec_test.
  std::string Encode() const;
  // Errors: DataLoss if the bytes are not an encoding of a valid spec.
  static absl::StatusOr<NamespaceSpec> Decode(std::string_view bytes);
  friend bool operator==(const NamespaceSpec&, const NamespaceSpec&) = default;
};

inline constexpr uint32_t kBlockTokensMax = 65536;
inline constexpr uint32_t kNumSlicesMax = 1024;
inline constexpr uint64_t kSlotBytesMax = uint64_t{256}
                                          << 20;  // 256 MiB: below the smallest extent
inline constexpr size_t kSpecStringBytesMax = 256;

}  // namespace kvstore
