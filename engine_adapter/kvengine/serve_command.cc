#include "engine_adapter/kvengine/serve_command.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine_adapter/kvengine/engine.h"
#include "engine_adapter/serving/completion_service.h"
#include "engine_adapter/serving/grpc_server.h"
#include "engine_adapter/serving/http_server.h"
#include "engine_adapter/serving/openai_api.h"
#include "engine_adapter/serving/scheduler.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/trusted_path.h"
#include "kvstore/base/units.h"

namespace kvstore::engine {
namespace {

constexpr size_t kApiKeyBytesMin = 16;
constexpr size_t kApiKeyBytesMax = 4096;
constexpr size_t kEdgeThreads = 2;  // that parse and tokenize
constexpr size_t kEdgeQueue = 64;

// Taken one at a time by the main thread. Threads inherit the mask: before any is started.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// Descriptors for every connection, and some for the store's slabs.
absl::Status RaiseFileLimit(unsigned connections) {
  constexpr rlim_t kOthers = 512;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t wanted = connections + kOthers;
  if (limit.rlim_cur >= wanted) return absl::OkStatus();
  if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < wanted) {
    return absl::FailedPreconditionError(absl::StrCat("--connections ", connections, " needs ",
                                                      wanted, " open files; this process may have ",
                                                      limit.rlim_max));
  }
  limit.rlim_cur = wanted;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0 ? absl::OkStatus()
                                               : absl::ErrnoToStatus(errno, "setrlimit");
}

absl::StatusOr<std::string> ReadApiKey(const std::string& path) {
  if (path.empty()) return std::string();
  const std::string absolute = std::filesystem::absolute(path).lexically_normal().string();
  ASSIGN_OR_RETURN(const std::string text, ReadSecretFile(absolute, kApiKeyBytesMax));
  const std::string key(absl::StripAsciiWhitespace(text));
  const auto is_visible = [](char c) { return c > ' ' && c < 0x7f; };
  if (key.size() < kApiKeyBytesMin || !std::all_of(key.begin(), key.end(), is_visible)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": an API key has at least ",
                                                   kApiKeyBytesMin, " visible ASCII characters"));
  }
  return key;
}

std::string FolderName(const std::string& model_dir) {
  std::filesystem::path path = std::filesystem::absolute(model_dir).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();  // "dir/"
  return path.filename().string();
}

// Sizes that follow from the model.
struct Sizes {
  int64_t kv_tokens = 0;
  int64_t context_tokens = 0;
};
absl::StatusOr<Sizes> DeriveSizes(const ServeCommand& command, const Backend& backend) {
  const KvLayout& layout = backend.kv_layout();
  const auto page_bytes = static_cast<uint64_t>(layout.page_bytes());
  Sizes sizes{.kv_tokens =
                  static_cast<int64_t>(command.kv_bytes / page_bytes) * layout.block_tokens};
  const int64_t positions = backend.config().max_positions;
  if (command.context_tokens > positions) {
    return absl::InvalidArgumentError(absl::StrCat("--context is ", command.context_tokens,
                                                   "; the model has ", positions, " positions"));
  }
  sizes.context_tokens =
      command.context_tokens > 0 ? command.context_tokens : std::min(positions, sizes.kv_tokens);
  if (sizes.kv_tokens < std::max(sizes.context_tokens, layout.block_tokens)) {
    const auto needed =
        static_cast<uint64_t>(layout.BlocksOf(std::max<int64_t>(sizes.context_tokens, 1))) *
        page_bytes;
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-memory ", FormatBytes(command.kv_bytes), " holds ", sizes.kv_tokens,
                     " tokens; one request may need ", FormatBytes(needed)));
  }
  return sizes;
}

std::optional<ChatTemplate> ReadChat(const ServeCommand& command) {
  absl::StatusOr<ChatTemplate> chat = ChatTemplate::Read(command.engine.model_dir);
  if (chat.ok()) return *std::move(chat);
  Log(LogLevel::kWarning, "conversations are refused: no chat template",
      {{"status", chat.status()}});
  return std::nullopt;
}

// Everything that serves; members in the order of their needs.
class Server {
 public:
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServeCommand& command) {
    ASSIGN_OR_RETURN(const std::string api_key, ReadApiKey(command.api_key_file));
    RETURN_IF_ERROR(RaiseFileLimit(command.connections_max));
    ASSIGN_OR_RETURN(Engine engine, Engine::Load(command.engine));
    std::unique_ptr<Server> server(new Server(std::move(engine)));
    RETURN_IF_ERROR(server->Open(command, api_key));
    return server;
  }

  // Requests under way are finished, for at most `time`. Returns how many were not.
  int64_t Stop(absl::Duration time) {
    const int64_t cut_short = scheduler_->Stop(absl::Now() + time);
    edge_.Stop();
    grpc_.reset();
    http_.reset();
    return cut_short;
  }

 private:
  explicit Server(Engine engine)
      : engine_(std::move(engine)), edge_("kv-edge", kEdgeThreads, kEdgeQueue) {}

  absl::Status Open(const ServeCommand& command, const std::string& api_key) {
    Backend& backend = engine_.backend();
    ASSIGN_OR_RETURN(const Sizes sizes, DeriveSizes(command, backend));
    const SchedulerOptions options{.queue_max = command.queue_max,
                                   .sequences_max = command.sequences_max,
                                   .kv_tokens_max = sizes.kv_tokens,
                                   .page_work = command.engine.device == Device::kCuda
                                                    ? PageWork::kEngineThread
                                                    : PageWork::kOwnThreads,
                                   .on_failure =
                                       [](const absl::Status& why) {
                                         Log(LogLevel::kError, "request failed", {{"status", why}});
                                       },
                                   .step_tokens = command.step_tokens};
    RETURN_IF_ERROR(options.Validate(backend));
    scheduler_ = std::make_unique<Scheduler>(
        backend, [this] { return engine_.MakePrefixCache(); }, options, metrics_);
    const ServedModel model{.name = command.model_name.empty()
                                        ? FolderName(command.engine.model_dir)
                                        : command.model_name,
                            .context_tokens = sizes.context_tokens,
                            .default_max_tokens = command.default_max_tokens};
    service_ = std::make_unique<CompletionService>(model, engine_.tokenizer(), ReadChat(command),
                                                   *scheduler_, metrics_);
    RETURN_IF_ERROR(Listen(command, api_key));
    Log(LogLevel::kInfo, "serving",
        {{"http", HttpText(command)},
         {"grpc", GrpcText(command)},
         {"model", model.name},
         {"context_tokens", sizes.context_tokens},
         {"kv_tokens", sizes.kv_tokens},
         {"max_sequences", command.sequences_max},
         {"store", command.engine.store_target}});
    return absl::OkStatus();
  }

  absl::Status Listen(const ServeCommand& command, const std::string& api_key) {
    const int64_t block_tokens = engine_.backend().kv_layout().block_tokens;
    api_ =
        std::make_unique<OpenAiApi>(OpenAiApiOptions{.api_key = api_key,
                                                     .block_tokens = block_tokens,
                                                     .created = absl::ToUnixSeconds(absl::Now())},
                                    *service_, *scheduler_, metrics_, edge_);
    ASSIGN_OR_RETURN(const HttpAddress address, ParseListenAddress(command.http_address));
    ASSIGN_OR_RETURN(
        http_, HttpServer::Start({.address = address, .connections_max = command.connections_max},
                                 api_->Callbacks()));
    if (command.grpc_address.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(grpc_, GrpcServer::Start({.address = command.grpc_address,
                                               .api_key = api_key,
                                               .block_tokens = block_tokens},
                                              *service_, edge_));
    return absl::OkStatus();
  }

  std::string HttpText(const ServeCommand& command) const {
    const std::string& text = command.http_address;
    return absl::StrCat(text.substr(0, text.rfind(':') + 1), http_->port());
  }
  std::string GrpcText(const ServeCommand& command) const {
    const std::string& text = command.grpc_address;
    if (grpc_ == nullptr || grpc_->port() == 0) return text;
    return absl::StrCat(text.substr(0, text.rfind(':') + 1), grpc_->port());
  }

  Engine engine_;
  ServingMetrics metrics_;
  TaskThreads edge_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CompletionService> service_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<GrpcServer> grpc_;
};

// The second signal does not wait for anybody: leases and pages end with the process.
void EndAtNextSignal(const sigset_t& signals) {
  std::thread([signals] {
    int signal = 0;
    while (sigwait(&signals, &signal) != 0) {
    }
    Log(LogLevel::kWarning, "ended without waiting for requests", {{"signal", signal}});
    _exit(kExitFailed);
  }).detach();
}

}  // namespace

int RunServeCommand(const ServeCommand& command) {
  umask(077);
  const sigset_t signals = BlockSignals();
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(command);
  if (!server.ok()) {
    Log(LogLevel::kError, "cannot start", {{"status", server.status()}});
    return kExitFailed;
  }
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  Log(LogLevel::kInfo, "draining", {{"signal", signal}});
  EndAtNextSignal(signals);
  const int64_t cut_short = (*server)->Stop(command.drain_time);
  if (cut_short > 0) Log(LogLevel::kWarning, "drain was cut short", {{"requests", cut_short}});
  Log(LogLevel::kInfo, "stopped");
  return kExitDone;
}

}  // namespace kvstore::engine
