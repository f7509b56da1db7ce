#include "kvstore/client/client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/acquire_stream.h"
#include "kvstore/client/connection.h"
#include "kvstore/client/inline_transfer.h"
#include "kvstore/client/lease_state.h"
#include "kvstore/client/reservation_state.h"
#include "kvstore/client/wire.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::client {
namespace {

// One step of a Put through shared memory: reserved, filled and published together, so that what is
// written early is of use early and what is reserved at a time stays small.
constexpr uint64_t kPutWindowBytes = uint64_t{64} << 20;
constexpr uint64_t kPutWindowBlocksMax = 1024;

absl::Status BeingDestroyed() { return absl::CancelledError("the client is being destroyed"); }

absl::Status CheckHashes(std::span<const BlockHash> hashes) {
  if (hashes.size() <= 65536) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(hashes.size(), " blocks; at most 65536 a call"));
}

// A blocking unary call.
template <class Request, class Response>
absl::Status Call(Connection& connection, const std::shared_ptr<MemorySession>& session,
                  absl::Duration timeout,
                  grpc::Status (v1::KvStore::Stub::*method)(grpc::ClientContext*, const Request&,
                                                            Response*),
                  const Request& request, Response* response) {
  grpc::ClientContext context;
  connection.Prepare(&context, session.get(), timeout);
  if (!connection.BeginCall(&context)) return BeingDestroyed();
  absl::Status status =
      connection.StatusOf((connection.stub().*method)(&context, request, response), session);
  connection.EndCall(&context);
  return status;
}

absl::StatusOr<std::shared_ptr<Lease::State>> NewLease(
    const std::shared_ptr<Connection>& connection, const Namespace& ns,
    std::vector<BlockHash> hashes, absl::Duration timeout) {
  RETURN_IF_ERROR(CheckHashes(hashes));
  ASSIGN_OR_RETURN(std::shared_ptr<MemorySession> session, connection->Session(timeout));
  return std::make_shared<Lease::State>(connection, std::move(session), ns, std::move(hashes));
}

// A reserve in flight.
struct ReserveCall {
  // Shared: the call outlives whoever started it. First, so that it goes last: a context holds the
  // channel, too.
  std::shared_ptr<Connection> connection;
  grpc::ClientContext context;
  v1::ReserveRequest request;
  v1::ReserveResponse response;
  std::shared_ptr<MemorySession> session;
  Namespace ns;
  absl::Time deadline;
  absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<Reservation::State>>)> done;
};

void OnReserved(const std::shared_ptr<ReserveCall>& call, const grpc::Status& status) {
  absl::Status answered = call->connection->StatusOf(status, call->session);
  if (!answered.ok()) return call->done(std::move(answered));
  absl::StatusOr<std::shared_ptr<Reservation::State>> made = Reservation::State::Make(
      call->connection, call->session, call->ns, call->request, call->response);
  if (!made.ok() || (*made)->MapCached()) return call->done(std::move(made));
  // A slab that is new to us: mapping it asks the daemon, which a gRPC thread must not wait for.
  const bool is_posted = call->connection->PostTask([call, state = *made] {
    absl::Status mapped =
        state->Map(TimeLeft(call->deadline, call->connection->options().deadline));
    if (mapped.ok()) return call->done(state);
    call->done(std::move(mapped));
  });
  if (!is_posted) call->done(BeingDestroyed());
}

}  // namespace

const char* TierName(Tier tier) {
  switch (tier) {
    case Tier::kGpu:
      return "gpu";
    case Tier::kDram:
      return "dram";
    case Tier::kNvme:
      break;
  }
  return "nvme";
}

HashChain Namespace::Chain() const { return HashChain(RootHash(fingerprint), spec.block_tokens); }

std::vector<BlockHash> Namespace::Hash(std::span<const uint32_t> tokens) const {
  return HashBlocks(RootHash(fingerprint), tokens, spec.block_tokens);
}

std::vector<uint64_t> SliceSeeds(const Namespace& ns, const BlockHash& hash) {
  const uint64_t block_seed = transfer::BlockSeed(ns.fingerprint, hash);
  std::vector<uint64_t> seeds(ns.spec.shape.num_slices);
  for (uint32_t i = 0; i < seeds.size(); ++i) seeds[i] = transfer::SliceSeed(block_seed, i);
  return seeds;
}

struct Client::State {
  std::shared_ptr<Connection> connection;  // shared with leases and reservations
};

Client::Client() : state_(std::make_shared<State>()) {}
Client::~Client() { state_->connection->Shutdown(); }

absl::StatusOr<std::unique_ptr<Client>> Client::Create(ClientOptions options) {
  ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection, Connection::Create(std::move(options)));
  std::unique_ptr<Client> client(new Client);
  client->state_->connection = std::move(connection);
  return client;
}

absl::Status Client::WaitConnected(absl::Time deadline) {
  Connection& connection = *state_->connection;
  if (connection.target().is_unix)
    RETURN_IF_ERROR(connection.WaitSession(TimeLeft(deadline, connection.options().deadline)));
  const absl::Duration left = TimeLeft(deadline, connection.options().deadline);
  if (connection.channel().WaitForConnected(std::chrono::system_clock::now() +
                                            absl::ToChronoMicroseconds(left)))
    return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(connection.options().target, ": no daemon answers"));
}

bool Client::has_shared_memory() const { return state_->connection->CurrentSession() != nullptr; }

absl::StatusOr<Namespace> Client::Open(const std::string& name, const NamespaceSpec& spec,
                                       absl::Time deadline) {
  Connection& connection = *state_->connection;
  v1::OpenNamespaceRequest request;
  request.set_name(name);
  WriteSpec(spec, request.mutable_spec());
  // The client's tenant is in the call's metadata; a spec may name one only if the client names
  // none.
  if (connection.options().tenant.empty() && spec.tenant != NamespaceSpec().tenant)
    request.mutable_spec()->set_tenant(spec.tenant);
  v1::OpenNamespaceResponse response;
  RETURN_IF_ERROR(Call(connection, nullptr, TimeLeft(deadline, connection.options().deadline),
                       &v1::KvStore::Stub::OpenNamespace, request, &response));
  if (response.lease_ms() > 0) connection.set_lease_time(absl::Milliseconds(response.lease_ms()));
  return ReadNamespace(response);
}

absl::StatusOr<Namespace> Client::Find(const std::string& name, absl::Time deadline) {
  Connection& connection = *state_->connection;
  v1::FindNamespaceRequest request;
  request.mutable_namespace_()->set_name(name);
  v1::OpenNamespaceResponse response;
  RETURN_IF_ERROR(Call(connection, nullptr, TimeLeft(deadline, connection.options().deadline),
                       &v1::KvStore::Stub::FindNamespace, request, &response));
  if (response.lease_ms() > 0) connection.set_lease_time(absl::Milliseconds(response.lease_ms()));
  return ReadNamespace(response);
}

absl::StatusOr<Match> Client::MatchPrefix(const Namespace& ns, std::span<const BlockHash> hashes,
                                          absl::Time deadline) {
  RETURN_IF_ERROR(CheckHashes(hashes));
  Connection& connection = *state_->connection;
  v1::MatchRequest request;
  FillRef(ns, request.mutable_namespace_());
  request.set_hashes(HashBytes(hashes));
  v1::MatchResponse response;
  RETURN_IF_ERROR(Call(connection, nullptr, TimeLeft(deadline, connection.options().deadline),
                       &v1::KvStore::Stub::Match, request, &response));
  return ReadMatch(response, hashes.size());
}

void Client::AcquireAsync(const Namespace& ns, std::vector<BlockHash> hashes,
                          AcquireOptions options, absl::Time deadline,
                          absl::AnyInvocable<void(absl::StatusOr<Lease>)> done) {
  const absl::Duration timeout = TimeLeft(deadline, state_->connection->options().deadline);
  absl::StatusOr<std::shared_ptr<Lease::State>> lease =
      NewLease(state_->connection, ns, std::move(hashes), timeout);
  if (!lease.ok()) return done(lease.status());
  AcquireStream::Start(
      *std::move(lease), options, TimeLeft(deadline, timeout), AcquireStream::Watch::kAlarm,
      [done = std::move(done)](absl::StatusOr<std::shared_ptr<Lease::State>> made) mutable {
        if (!made.ok()) return done(made.status());
        done(Lease(*std::move(made)));
      });
}

absl::StatusOr<Lease> Client::Acquire(const Namespace& ns, std::span<const BlockHash> hashes,
                                      AcquireOptions options, absl::Time deadline) {
  const absl::Duration timeout = TimeLeft(deadline, state_->connection->options().deadline);
  ASSIGN_OR_RETURN(std::shared_ptr<Lease::State> lease,
                   NewLease(state_->connection, ns,
                            std::vector<BlockHash>(hashes.begin(), hashes.end()), timeout));
  absl::Duration left = TimeLeft(deadline, timeout);
  // The short way, for what can be read where it is; a stream tells of what has to come up first.
  ASSIGN_OR_RETURN(std::optional<AcquireReply> reply,
                   lease->session->Acquire(ns.fingerprint, options.hottest == HottestTier::kGpu,
                                           lease->hashes, left));
  if (reply.has_value()) {
    RETURN_IF_ERROR(lease->OnReply(*std::move(reply)));
    return Lease(std::move(lease));
  }
  absl::Notification notified;
  absl::Status status;
  left = TimeLeft(deadline, timeout);
  AcquireStream::Start(lease, options, left, AcquireStream::Watch::kCaller,
                       [&](absl::StatusOr<std::shared_ptr<Lease::State>> made) {
                         status = made.status();
                         notified.Notify();
                       });
  if (!notified.WaitForNotificationWithTimeout(left)) {
    lease->GiveUp();
    notified.WaitForNotification();  // a cancelled call ends at once
  }
  if (!status.ok()) return status;
  return Lease(std::move(lease));
}

void Client::ReserveAsync(const Namespace& ns, const ReserveRequest& request, absl::Time deadline,
                          absl::AnyInvocable<void(absl::StatusOr<Reservation>)> done) {
  if (absl::Status checked = CheckHashes(request.hashes); !checked.ok()) return done(checked);
  Connection& connection = *state_->connection;
  if (connection.options().access != MemoryAccess::kReadWrite) {
    return done(absl::FailedPreconditionError("a read-only client cannot reserve"));
  }
  const absl::Duration timeout = TimeLeft(deadline, connection.options().deadline);
  absl::StatusOr<std::shared_ptr<MemorySession>> session = connection.Session(timeout);
  if (!session.ok()) return done(session.status());
  auto call = std::make_shared<ReserveCall>();
  call->connection = state_->connection;
  call->session = *std::move(session);
  call->ns = ns;
  call->deadline = absl::Now() + timeout;
  call->done =
      [done = std::move(done)](absl::StatusOr<std::shared_ptr<Reservation::State>> made) mutable {
        if (!made.ok()) return done(made.status());
        done(Reservation(*std::move(made)));
      };
  FillRef(ns, call->request.mutable_namespace_());
  if (request.parent.has_value())
    call->request.set_parent(request.parent->bytes.data(), request.parent->bytes.size());
  call->request.set_first_block_index(request.first_block_index);
  call->request.set_hashes(HashBytes(request.hashes));
  call->request.set_tier(static_cast<v1::Tier>(static_cast<int>(request.tier) + 1));
  connection.Prepare(&call->context, call->session.get(), TimeLeft(call->deadline, timeout));
  if (!connection.BeginCall(&call->context)) return call->done(BeingDestroyed());
  connection.stub().async()->Reserve(&call->context, &call->request, &call->response,
                                     [call](grpc::Status status) mutable {
                                       const CallbackScope scope;
                                       const auto ended = std::move(call);
                                       OnReserved(ended, status);
                                       ended->connection->EndCall(&ended->context);
                                     });
}

absl::StatusOr<Reservation> Client::Reserve(const Namespace& ns, const ReserveRequest& request,
                                            absl::Time deadline) {
  absl::Notification notified;
  absl::StatusOr<Reservation> reservation = absl::UnknownError("");
  ReserveAsync(ns, request, deadline, [&](absl::StatusOr<Reservation> made) {
    reservation = std::move(made);
    notified.Notify();
  });
  notified.WaitForNotification();
  return reservation;
}

absl::Status Client::Clear(const Namespace& ns, absl::Time deadline) {
  Connection& connection = *state_->connection;
  v1::ClearRequest request;
  FillRef(ns, request.mutable_namespace_());
  v1::ClearResponse response;
  return Call(connection, nullptr, TimeLeft(deadline, connection.options().deadline),
              &v1::KvStore::Stub::Clear, request, &response);
}

absl::StatusOr<PutResult> Client::Put(const Namespace& ns, std::span<const BlockHash> hashes,
                                      std::span<const std::byte> pages, absl::Time deadline) {
  RETURN_IF_ERROR(CheckHashes(hashes));
  const uint64_t page_bytes = ns.spec.shape.page_bytes();
  if (pages.size() != hashes.size() * page_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(pages.size(), " bytes for ", hashes.size(), " pages of ", page_bytes));
  }
  const ClientOptions& options = state_->connection->options();
  const absl::Duration timeout = TimeLeft(deadline, options.bulk_deadline);
  if (!has_shared_memory() || options.access != MemoryAccess::kReadWrite) {
    return InlinePut(*state_->connection, ns, hashes, pages, timeout);
  }
  const absl::Time until = absl::Now() + timeout;
  const uint64_t window_blocks =
      std::clamp<uint64_t>(kPutWindowBytes / page_bytes, 1, kPutWindowBlocksMax);
  PutResult result{
      .blocks = static_cast<uint32_t>(hashes.size()), .stored_blocks = 0, .existing_blocks = 0};
  for (size_t begin = 0; begin < hashes.size();) {
    const size_t count = std::min<size_t>(window_blocks, hashes.size() - begin);
    client::ReserveRequest request{.parent = std::nullopt,
                                   .first_block_index = static_cast<uint32_t>(begin),
                                   .hashes = hashes.subspan(begin, count),
                                   .tier = Tier::kDram};
    if (begin > 0) request.parent = hashes[begin - 1];
    ASSIGN_OR_RETURN(Reservation reservation, Reserve(ns, request, until));
    std::vector<uint32_t> filled;
    uint32_t existing = 0;
    bool is_full = false;
    for (uint32_t i = 0; i < count && !is_full; ++i) {
      switch (reservation.state(i)) {
        case Reservation::BlockState::kReserved:
          reservation.Fill(i, pages.data() + (begin + i) * page_bytes);
          filled.push_back(i);
          break;
        case Reservation::BlockState::kExists:
        case Reservation::BlockState::kBeingWritten:
          ++existing;
          break;
        case Reservation::BlockState::kNoSpace:
          is_full = true;
      }
    }
    RETURN_IF_ERROR(reservation.Commit(filled, until));
    result.stored_blocks += static_cast<uint32_t>(filled.size());
    result.existing_blocks += existing;
    if (is_full) break;
    begin += count;
  }
  if (result.blocks > 0 && result.stored_blocks + result.existing_blocks == 0) {
    return absl::ResourceExhaustedError("no page is free in the dram tier; wait or skip the save");
  }
  return result;
}

absl::StatusOr<GetResult> Client::Get(const Namespace& ns, std::span<const BlockHash> hashes,
                                      std::span<std::byte> pages, absl::Time deadline) {
  RETURN_IF_ERROR(CheckHashes(hashes));
  const uint64_t page_bytes = ns.spec.shape.page_bytes();
  if (pages.size() < hashes.size() * page_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("room of ", pages.size(), " bytes for ",
                                                   hashes.size(), " pages of ", page_bytes));
  }
  const absl::Duration timeout = TimeLeft(deadline, state_->connection->options().bulk_deadline);
  if (!has_shared_memory()) return InlineGet(*state_->connection, ns, hashes, pages, timeout);
  const absl::Time until = absl::Now() + timeout;
  ASSIGN_OR_RETURN(Lease lease, Acquire(ns, hashes, HottestTier::kDram, until));
  GetResult result;
  result.match.matched_blocks = lease.matched_blocks();
  result.match.matched_tokens = uint64_t{result.match.matched_blocks} * ns.spec.block_tokens;
  result.match.page_bytes = page_bytes;
  for (uint32_t block = 0; block < result.match.matched_blocks; ++block) {
    // A page that is lost ends the prefix: what came before is good.
    if (!lease.CopyPage(block, pages.data() + block * page_bytes, until).ok()) break;
    absl::StatusOr<PageView> view = lease.WaitReady(block, until);
    if (view.ok()) ++result.match.by_tier[static_cast<size_t>(view->found_in)];
    ++result.delivered_blocks;
  }
  return result;
}

}  // namespace kvstore::client
