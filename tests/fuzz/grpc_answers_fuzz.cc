// gRPC answers as a client sees them, from a daemon that may be of another version, or lie.
//
//   input: which message u8, its bytes; of streams: [length u16, message]*
//
// Promises: what is accepted never leads out of the caller's memory or of a slab, and pages of an
// accepted namespace can be computed with; a refused message changes nothing.
#include "kvstore/base/page_trailer.h"
#include "kvstore/client/page_sink.h"
#include "kvstore/client/wire.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore {
namespace {

using fuzz::Input;

constexpr size_t kHashes = 6;

template <typename Message>
bool Parse(std::string_view bytes, Message* message) {
  return message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

void OnNamespace(const v1::OpenNamespaceResponse& response) {
  const absl::StatusOr<client::Namespace> ns = client::ReadNamespace(response);
  if (!ns.ok()) return;
  // Everything that a client computes with a namespace.
  REQUIRE(ns->spec.Validate().ok());
  v1::NamespaceRef ref;
  client::FillRef(*ns, &ref);
  REQUIRE(ref.fingerprint() == response.fingerprint());
}

bool AreEqual(const AcquiredColumns& a, const AcquiredColumns& b) {
  return a.generation == b.generation && a.page_checksum == b.page_checksum && a.slab == b.slab &&
         a.slot == b.slot && a.tier == b.tier && a.found_in == b.found_in;
}

void OnAcquired(Input& input) {
  AcquiredColumns columns;
  columns.resize(kHashes);
  const PageShape shape{.num_slices = 4, .slice_bytes = 2048};
  std::vector<uint32_t> slices;
  while (!input.is_empty()) {
    v1::AcquireResponse message;
    if (!Parse(input.TakePart(), &message)) return;
    const AcquiredColumns before = columns;
    const std::vector<uint32_t> slices_before = slices;
    if (!client::TakeColumns(message, shape, &columns, &slices).ok()) {
      REQUIRE(AreEqual(before, columns) && slices == slices_before);
      return;
    }
    REQUIRE(slices.empty() || slices.size() == kHashes);
    for (const uint32_t leading : slices) REQUIRE(leading < shape.num_slices);
    REQUIRE(columns.size() == kHashes && columns.tier.size() == kHashes);
    for (size_t i = 0; i < kHashes; ++i) {
      REQUIRE(columns.tier[i] <= client::kNumTiers && columns.found_in[i] <= client::kNumTiers);
      const uint64_t slab_bytes = columns.generation[i] % (1 << 20);
      const auto offset = client::SlotOffset(columns.slot[i], shape, slab_bytes);
      if (offset.has_value()) REQUIRE(*offset + shape.slot_bytes() <= slab_bytes);
    }
  }
}

void OnReserved(const v1::ReserveResponse& response) {
  if (!client::CheckReserved(response, kHashes).ok()) return;
  REQUIRE(response.state().size() == kHashes && response.slab_size() == int{kHashes});
  REQUIRE(response.slot_size() == int{kHashes});
  for (const char state : response.state()) REQUIRE(state >= 1 && state <= 4);
}

void OnMatch(const v1::MatchResponse& response) {
  const absl::StatusOr<client::Match> match = client::ReadMatch(response, kHashes);
  if (match.ok()) REQUIRE(match->matched_blocks <= kHashes);
}

// Exactly as long as the pages, so that a byte too many is seen.
void OnGet(Input& input) {
  constexpr uint64_t kPageBytes = 24;
  std::string pages(kHashes * kPageBytes, '\0');
  client::PageSink sink(std::as_writable_bytes(std::span(pages)), kPageBytes, kHashes);
  uint64_t bytes = 0;
  while (!input.is_empty()) {
    v1::GetResponse message;
    if (!Parse(input.TakePart(), &message)) return;
    if (!sink.Take(message).ok()) return;
    bytes += message.data().size();
  }
  const absl::StatusOr<client::GetResult> result = sink.Finish();
  if (!result.ok()) return;
  REQUIRE(result->match.matched_blocks <= kHashes);
  REQUIRE(result->delivered_blocks <= result->match.matched_blocks);
  REQUIRE(result->delivered_blocks * kPageBytes == bytes);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  v1::OpenNamespaceResponse opened;
  v1::ReserveResponse reserved;
  v1::MatchResponse matched;
  switch (input.Take<uint8_t>() % 5) {
    case 0:
      if (Parse(input.TakeRest(), &opened)) OnNamespace(opened);
      break;
    case 1:
      OnAcquired(input);
      break;
    case 2:
      if (Parse(input.TakeRest(), &reserved)) OnReserved(reserved);
      break;
    case 3:
      if (Parse(input.TakeRest(), &matched)) OnMatch(matched);
      break;
    default:
      OnGet(input);
  }
  return 0;
}
