#include "kvstore/service/verify_call.h"

#include <memory>
#include <utility>

#include "kvstore/base/status_macros.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {

grpc::ServerWriteReactor<v1::VerifyResponse>* VerifyCall::Start(const CallParts& parts,
                                                                absl::StatusOr<CallScope> entered,
                                                                const v1::VerifyRequest& request) {
  std::shared_ptr<VerifyCall> call(new VerifyCall(parts));
  call->Hold();
  if (entered.ok()) call->scope_ = *std::move(entered);
  call->EndIfRefused(entered.ok() ? call->Begin(request) : entered.status());
  return call.get();
}

absl::Status VerifyCall::Begin(const v1::VerifyRequest& request) {
  ASSIGN_OR_RETURN(std::optional<tiers::TierKind> tier, ReadOptionalTier(request.tier()));
  const store::VerifyMode mode =
      request.repair() ? store::VerifyMode::kRepair : store::VerifyMode::kDropBad;
  EndAtServerDeadline();
  const bool is_posted = scope_.TryPost(parts_.core_queue, [self = shared_from_this(), tier, mode] {
    self->parts_.store.Verify(tier, mode, [self](absl::StatusOr<store::VerifyResult> result) {
      self->edge_.Post([self, result = std::move(result)] { self->OnResult(result); });
    });
  });
  return is_posted ? absl::OkStatus() : CoreIsBusy();
}

void VerifyCall::OnResult(const absl::StatusOr<store::VerifyResult>& result) {
  if (!result.ok()) return End(result.status());
  if (!TakeEnd(absl::StatusCode::kOk)) return;
  message_.set_is_last(true);
  message_.set_checked(result->checked);
  message_.set_bad(result->bad);
  message_.set_repaired(result->repaired);
  StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
}

}  // namespace kvstore::service
