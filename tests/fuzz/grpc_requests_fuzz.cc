// gRPC requests as a daemon sees them: bytes -> message -> plain structs.
//
//   input: which message u8, its bytes
//
// Promises: what a reader accepts keeps every value that was in the message, is within the bounds
// of the contract, and is told back as it was; an error is InvalidArgument with a text.
#include <google/protobuf/arena.h>

#include "kvstore/base/block_hasher.h"
#include "kvstore/service/tenants.h"
#include "kvstore/service/translate.h"
#include "kvstore/v1/admin.pb.h"
#include "kvstore/v1/kvstore.pb.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore {
namespace {

void CheckRefusal(const absl::Status& status) {
  REQUIRE(status.code() == absl::StatusCode::kInvalidArgument);
  REQUIRE(!status.message().empty() && status.message().size() < 4096);
}

void CheckHashes(const std::string& bytes) {
  const auto hashes = service::ReadHashes(bytes);
  if (!hashes.ok()) return CheckRefusal(hashes.status());
  REQUIRE(hashes->size() <= service::kBlocksPerCallMax);
  REQUIRE(fuzz::AsText(std::as_bytes(std::span(*hashes))) == bytes);
}

void CheckRef(const v1::NamespaceRef& ref) {
  const auto key = service::ReadNamespaceRef(ref, "00ff");
  if (!key.ok()) return CheckRefusal(key.status());
  REQUIRE(key->fingerprint.has_value() == key->name.empty());
  REQUIRE(key->name == ref.name() && key->salt == "00ff");
  if (key->fingerprint.has_value()) {
    REQUIRE(fuzz::AsText(std::as_bytes(std::span(key->fingerprint->bytes))) == ref.fingerprint());
  } else {
    REQUIRE(key->name.size() <= service::kNamespaceNameBytesMax);
    REQUIRE(service::StoredName(key->name, "") == key->name);
    REQUIRE(service::StoredName(key->name, "00ff") != key->name);
  }
}

void CheckSpec(const v1::NamespaceSpec& message) {
  const auto spec = service::ReadSpec(message, "team-a");
  if (!spec.ok()) return CheckRefusal(spec.status());
  REQUIRE(spec->Validate().ok() && spec->tenant == "team-a");
  REQUIRE(spec->shape.slot_bytes() <= kSlotBytesMax);
  const auto decoded = NamespaceSpec::Decode(spec->Encode());
  REQUIRE(decoded.ok() && *decoded == *spec);
  v1::NamespaceSpec told;
  service::WriteSpec(*spec, &told);
  const auto again = service::ReadSpec(told, "team-a");
  REQUIRE(again.ok() && *again == *spec);
  REQUIRE(again->ComputeFingerprint() == spec->ComputeFingerprint());
}

template <typename Request>
void CheckBlocks(const Request& request) {
  auto keys = service::ReadBlockKeys(request.hashes(), request.tokens());
  if (!keys.ok()) return CheckRefusal(keys.status());
  REQUIRE(keys->by_tokens == (request.tokens_size() > 0));
  store::Store::OpenedNamespace ns;
  ns.spec.block_tokens = 2;
  const size_t num_blocks =
      keys->by_tokens ? keys->tokens.size() / 2 : request.hashes().size() / BlockHash::kBytes;
  const auto hashes = service::HashesOf(*std::move(keys), ns);
  if (!hashes.ok()) return CheckRefusal(hashes.status());
  REQUIRE(hashes->size() == num_blocks && num_blocks <= service::kBlocksPerCallMax);
}

void CheckReserve(const v1::ReserveRequest& request) {
  CheckRef(request.namespace_());
  CheckHashes(request.hashes());
  const auto parent = service::ReadParent(request.parent());
  if (parent.ok()) {
    REQUIRE(parent->has_value() == !request.parent().empty());
  } else {
    CheckRefusal(parent.status());
  }
  const auto tier = service::ReadTier(request.tier());
  if (tier.ok()) {
    REQUIRE(service::ToWire(*tier) == request.tier());
  } else {
    CheckRefusal(tier.status());
  }
}

void CheckOpen(const v1::OpenNamespaceRequest& request) {
  CheckSpec(request.spec());
  if (service::CheckNamespaceName(request.name()).ok()) {
    REQUIRE(!request.name().empty() && request.name().size() <= service::kNamespaceNameBytesMax);
    for (const unsigned char c : request.name()) REQUIRE(c >= 0x20 && c != 0x7f);
  }
}

template <typename Message, typename Check>
void WithMessage(std::string_view bytes, Check check) {
  google::protobuf::Arena arena;
  auto* message = google::protobuf::Arena::CreateMessage<Message>(&arena);
  if (message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) check(*message);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  const auto which = input.Take<uint8_t>();
  const std::string_view rest = input.TakeRest();
  switch (which % 9) {
    case 0:
      WithMessage<v1::OpenNamespaceRequest>(rest, CheckOpen);
      break;
    case 1:
      WithMessage<v1::FindNamespaceRequest>(rest, [](auto& m) { CheckRef(m.namespace_()); });
      break;
    case 2:
      WithMessage<v1::MatchRequest>(rest, [](auto& m) { CheckBlocks(m); });
      break;
    case 3:
      WithMessage<v1::AcquireRequest>(rest, [](auto& m) { CheckHashes(m.hashes()); });
      break;
    case 4:
      WithMessage<v1::ReserveRequest>(rest, CheckReserve);
      break;
    case 5:
      WithMessage<v1::PutRequest>(rest, [](auto& m) { CheckBlocks(m.header()); });
      break;
    case 6:
      WithMessage<v1::GetRequest>(rest, [](auto& m) { CheckBlocks(m); });
      break;
    case 7:
      WithMessage<v1::SetQuotaRequest>(rest, [](auto& m) {
        if (service::CheckTenantName(m.tenant()).ok())
          REQUIRE(!m.tenant().empty() && m.tenant().size() <= service::kTenantBytesMax);
      });
      break;
    default:
      WithMessage<v1::ClearRequest>(rest, [](auto& m) { CheckRef(m.namespace_()); });
  }
  return 0;
}
