// The memory socket as a daemon sees it: packets of one client, given to a store with one prefix
// in it.
//
//   input: [length u16, packet]*
//   in an Acquire packet the fingerprint of zeros is that of our namespace, and a hash of 31 zeros
//   and n is that of its block n; in a Release lease 1 is the first that this input may have taken
//
// One store for all inputs: making one costs as much as ten of them, and what is left of an input in
// it would be a finding.
//
// Promises: a packet is decoded to what encodes to the same bytes; a lease is of blocks that were
// asked for and are published; what is refused takes no lease; nothing is left after the session.
#include "kvstore/base/acquire_packet.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/memory_packets.h"
#include "kvstore/store/store.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/small_store.h"

namespace kvstore {
namespace {

using fuzz::Input;

void Name(const fuzz::SmallStore& store, AcquirePacket* request) {
  if (request->fingerprint == Fingerprint{}) request->fingerprint = store.ns().fingerprint;
  for (BlockHash& hash : request->hashes) {
    const size_t n = hash.bytes.back();
    BlockHash zero;
    zero.bytes.back() = hash.bytes.back();
    if (hash == zero && n < store.chain().size()) hash = store.chain()[n];
  }
}

void CheckReply(const fuzz::SmallStore& store, const AcquirePacket& request,
                const AcquireReply& reply, uint64_t leases_before) {
  const std::vector<std::byte> packet = EncodeAcquireReply(reply);
  REQUIRE(packet.size() <= kAcquireReplyBytesMax);
  const std::optional<AcquireReply> decoded = DecodeAcquireReply(packet);
  REQUIRE(decoded.has_value() && EncodeAcquireReply(*decoded) == packet);
  const uint64_t leases = store.store().status().leases;
  if (reply.code != MemoryReplyCode::kOk) {
    REQUIRE(reply.code == MemoryReplyCode::kUseCall && reply.blocks.size() == 0);
    REQUIRE(reply.lease == 0 && leases == leases_before);
    return;
  }
  REQUIRE(request.fingerprint == store.ns().fingerprint);
  REQUIRE(reply.blocks.size() <= request.hashes.size());
  REQUIRE((reply.lease != 0) == (reply.blocks.size() > 0));
  REQUIRE(leases == leases_before + (reply.lease != 0 ? 1 : 0));
  for (size_t i = 0; i < reply.blocks.size(); ++i) {
    const auto found = std::ranges::find(store.chain(), request.hashes[i]);
    REQUIRE(found - store.chain().begin() < fuzz::SmallStore::kPublished);
    REQUIRE(i == 0 || found[-1] == request.hashes[i - 1]);
    REQUIRE(reply.blocks.page_checksum[i] == fuzz::SmallStore::ContentOf(*found));
    REQUIRE(reply.blocks.tier[i] == 2 && reply.blocks.found_in[i] == 2);
  }
}

void OnAcquire(fuzz::SmallStore& store, SessionId session, std::span<const std::byte> packet) {
  std::optional<AcquirePacket> request = DecodeAcquireRequest(packet);
  if (!request.has_value()) return;
  REQUIRE(!request->hashes.empty() && request->hashes.size() <= kAcquirePacketBlocksMax);
  REQUIRE(fuzz::AsText(EncodeAcquireRequest(request->fingerprint, request->can_read_gpu,
                                            request->hashes)) == fuzz::AsText(packet));
  Name(store, &*request);
  const uint64_t leases = store.store().status().leases;
  CheckReply(store, *request,
             service::AcquireInPlace(store.store(), session, "default", "", *request), leases);
}

// Takes a lease and gives it back: leases are counted from it on.
uint64_t TakeLease(fuzz::SmallStore& store, SessionId session) {
  AcquirePacket request;
  request.fingerprint = store.ns().fingerprint;
  request.hashes = {store.chain()[0]};
  const AcquireReply reply =
      service::AcquireInPlace(store.store(), session, "default", "", request);
  REQUIRE(store.store().Release(session, LeaseId(reply.lease), {}).ok());
  return reply.lease;
}

void OnRequest(const MemoryRequest& request) {
  const std::optional<std::string> tenant = service::FieldText(request.tenant);
  if (!tenant.has_value()) return;
  REQUIRE(tenant->size() < request.tenant.size());
  std::array<char, 64> field{};
  std::copy(tenant->begin(), tenant->end(), field.begin());
  REQUIRE(field == request.tenant);
  // Nobody acts for another tenant; an owner acts for none whose name is not one.
  const service::Caller caller{.uid = 1000, .home_tenant = "team-a"};
  const absl::StatusOr<std::string> own = caller.TenantFor(*tenant);
  REQUIRE(!own.ok() || *own == "team-a");
  const service::Caller owner{.uid = 0, .rights = service::Caller::Rights::kOwner};
  const absl::StatusOr<std::string> any = owner.TenantFor(*tenant);
  REQUIRE(any.ok() == (tenant->empty() || service::CheckTenantName(*tenant).ok()));
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  static auto& store = *new fuzz::SmallStore;
  const SessionId session = *store.store().OpenSession("default");
  const uint64_t leases_so_far = TakeLease(store, session);
  for (fuzz::Input input(data, bytes); !input.is_empty();) {
    const std::string packet = fuzz::Copy(input.TakePart());
    OnAcquire(store, session, fuzz::AsBytes(packet));
    if (const auto request = service::MessageOf<MemoryRequest>(fuzz::AsBytes(packet)))
      OnRequest(*request);
    if (const auto release = service::MessageOf<MemoryRelease>(fuzz::AsBytes(packet)))
      store.store().Release(session, LeaseId(leases_so_far + release->lease), {}).IgnoreError();
    store.Settle();
  }
  store.store().CloseSession(session);
  store.Settle();
  REQUIRE(store.store().status().leases == 0);
  REQUIRE(store.store().CheckInvariants().ok());
  return 0;
}
