#include "kvstore/service/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_posix.h>

#include "absl/status/status.h"
#include "kvstore/base/thread_preference.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {
namespace {

constexpr int kStreamsPerConnectionMax = 256;
constexpr int kHeaderBytesMax = 8 << 10;
constexpr int kKeepaliveMs = 20'000;         // a peer that does not answer a ping ...
constexpr int kKeepaliveTimeoutMs = 10'000;  // ... for this long is gone
constexpr int kPingIntervalMinMs = 5'000;    // clients that ping more often are told to go away
// A request of 8,192 hashes in one flight: the default window of 64 KiB makes an Acquire of 2,048
// blocks wait for the other side twice.
constexpr int kWindowBytes = 512 << 10;
constexpr int kFrameBytes = 256 << 10;
constexpr int kReadChunkBytes = 64 << 10;

void RegisterGlobalPlugins() {
  static const bool is_done = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)is_done;
}

}  // namespace

absl::StatusOr<std::unique_ptr<grpc::Server>> StartGrpcServer(
    const std::vector<grpc::Service*>& services, const grpc::ResourceQuota& quota) {
  RegisterGlobalPlugins();
  grpc::ServerBuilder builder;
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.SetResourceQuota(quota);
  // Reflection is gRPC's own synchronous service: few threads, and none that wakes without work.
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_TCP_READ_CHUNK_SIZE, kReadChunkBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kHeaderBytesMax);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
  std::unique_ptr<grpc::Server> server;
  RunGivingWay([&] { server = builder.BuildAndStart(); });  // threads that parse and write
  if (server == nullptr) return absl::InternalError("gRPC server did not start");
  return server;
}

void AddConnection(grpc::Server& server, UniqueFd connection) {
  grpc::AddInsecureChannelFromFd(&server, connection.Take());
}

void SetServing(grpc::Server& server, bool is_serving) {
  if (auto* health = server.GetHealthCheckService()) health->SetServingStatus(is_serving);
}

}  // namespace kvstore::service
