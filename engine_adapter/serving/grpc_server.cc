#include "engine_adapter/serving/grpc_server.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine_adapter/serving/generate_call.h"
#include "engine_adapter/serving/openai_api.h"
#include "kvstore/v1/engine.grpc.pb.h"

namespace kvstore::engine {
namespace {

constexpr int kStreamsMax = 256;  // of one connection
constexpr size_t kMemoryBytes = 256 << 20;
constexpr std::chrono::seconds kStopTime{1};

class EngineService final : public v1::Engine::CallbackService {
 public:
  EngineService(const GrpcServerOptions& options, CompletionService& service, TaskThreads& edge)
      : options_(options), service_(service), edge_(edge) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    if (!MayCall(*context)) {
      return GenerateCall::Refuse(
          service_, absl::UnauthenticatedError("authorization: Bearer KEY is missing or wrong"));
    }
    return GenerateCall::Start(*request, options_.block_tokens, service_, edge_);
  }

 private:
  bool MayCall(const grpc::CallbackServerContext& context) const {
    if (options_.api_key.empty()) return true;
    const auto field = context.client_metadata().find("authorization");
    if (field == context.client_metadata().end()) return false;
    const std::string_view given(field->second.data(), field->second.size());
    return IsSameSecret(given, absl::StrCat("Bearer ", options_.api_key));
  }

  const GrpcServerOptions options_;
  CompletionService& service_;
  TaskThreads& edge_;
};

}  // namespace

struct GrpcServer::State {
  State(const GrpcServerOptions& options, CompletionService& completions, TaskThreads& edge)
      : service(options, completions, edge) {}

  EngineService service;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

GrpcServer::GrpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcServer::~GrpcServer() {
  state_->server->Shutdown(std::chrono::system_clock::now() + kStopTime);
  state_->server->Wait();
}

int GrpcServer::port() const { return state_->port; }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options,
                                                              CompletionService& service,
                                                              TaskThreads& edge) {
  auto state = std::make_unique<State>(options, service, edge);
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota("kvengine");
  quota.Resize(kMemoryBytes);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsMax);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &state->port);
  builder.RegisterService(&state->service);
  state->server = builder.BuildAndStart();
  const bool is_unix = options.address.starts_with("unix:");
  if (state->server == nullptr || (!is_unix && state->port == 0)) {
    return absl::UnavailableError(absl::StrCat("gRPC cannot listen on ", options.address));
  }
  if (is_unix) state->port = 0;
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(state)));
}

}  // namespace kvstore::engine
