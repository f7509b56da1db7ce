#include "kvstore/daemon/daemon.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/base/thread_preference.h"
#include "kvstore/base/units.h"
#include "kvstore/daemon/machine.h"
#include "kvstore/daemon/monitoring.h"
#include "kvstore/daemon/sd_notify.h"
#include "kvstore/service/service.h"
#include "kvstore/store/store.h"
#include "tiers/dram/dram_tier.h"
#include "tiers/dram/kept_memory.h"
#include "tiers/gpu/gpu_tier.h"
#include "tiers/nvme/master_keys.h"
#include "tiers/nvme/nvme_tier.h"

namespace kvstore::daemon {
namespace {

// Descriptors that are kept for what is opened now and then: RocksDB's files, slabs on their way to
// clients, gRPC's pollers.
constexpr uint64_t kSpareFiles = 16;
constexpr uint64_t kSpareFilesNvme = 64;
constexpr absl::Duration kStopGrace = absl::Seconds(1);  // for calls in progress

uint64_t RandomIncarnation() {
  uint64_t value = 0;
  // A clash would need a restart within the same incarnation number; without random bytes the pid
  // and time do.
  if (getrandom(&value, sizeof value, 0) != sizeof value) {
    value = static_cast<uint64_t>(getpid()) ^
            static_cast<uint64_t>(absl::ToUnixNanos(MonotonicClock().Now()));
  }
  return value;
}

store::StoreOptions StoreOptionsOf(const Config& config) {
  store::StoreOptions options;
  options.lease_time = config.limits.lease_time;
  options.move_deadline = config.limits.move_deadline;
  // Inline Put and Get take a session of their own for a call's time.
  options.sessions_max = config.server.sessions_max + config.limits.calls;
  options.namespaces_max = config.limits.namespaces;
  options.policy.write_to_dram = config.policy.write_to_dram;
  options.policy.write_to_nvme = config.policy.write_to_nvme;
  return options;
}

service::TlsFiles TlsFilesOf(const Config& config) {
  return {.cert = config.auth.tls_cert,
          .key = config.auth.tls_key,
          .client_ca = config.auth.tls_client_ca};
}

}  // namespace

absl::Status CheckFiles(const Config& config) {
  if (!config.auth.tenants.empty())
    RETURN_IF_ERROR(service::LoadTenantsFile(config.auth.tenants).status());
  if (!config.auth.tls_cert.empty())
    RETURN_IF_ERROR(service::TlsContext::Load(TlsFilesOf(config)).status());
  return absl::OkStatus();
}

struct Daemon::State {
  explicit State(LoadedConfig loaded) : config(loaded.config), values(std::move(loaded.values)) {}

  absl::Status OpenTiers();
  absl::Status OpenStore();
  absl::Status OpenService();
  absl::Status OpenMonitoring();
  service::ServiceOptions FitToFileLimit(service::ServiceOptions options);
  std::vector<std::string> Degraded();
  void NoteReload(const std::string& what, const absl::Status& status);
  std::vector<service::DaemonFacts::ConfigRow> ConfigRows();
  void LogKeptStart();
  void LogStart();
  absl::Status ReloadKeys();
  absl::Status Drain(absl::Duration time);

  const Config config;
  absl::Mutex mutex;
  std::vector<ConfigValue> values ABSL_GUARDED_BY(mutex);
  std::vector<std::string> degraded ABSL_GUARDED_BY(mutex);  // known since start; tiers add theirs
  // Of the last reload, by what was reloaded.
  std::map<std::string, std::string> reload_errors ABSL_GUARDED_BY(mutex);
  MonotonicClock clock;
  SdDescriptorStore descriptors;  // before any thread; outlives the DRAM tier
  std::unique_ptr<EventLoop> core;
  std::unique_ptr<tiers::GpuTier> gpu;
  std::unique_ptr<tiers::DramTier> dram;
  std::unique_ptr<tiers::NvmeTier> nvme;
  std::unique_ptr<store::Store> store;
  std::unique_ptr<service::Service> service;
  std::unique_ptr<metrics::HttpServer> http;
  bool is_stopped = false;
};

absl::Status Daemon::State::OpenTiers() {
  tiers::DramTier::Options dram_options;
  if (!config.nvme.dirs.empty()) {
    tiers::NvmeOptions nvme_options;
    nvme_options.dirs = config.nvme.dirs;
    nvme_options.capacity_bytes = config.nvme.bytes;
    nvme_options.queue_depth = static_cast<uint32_t>(config.nvme.queue_depth);
    nvme_options.encrypt = config.nvme.encrypt;
    nvme_options.key_file = config.nvme.key_file;
    ASSIGN_OR_RETURN(nvme, tiers::NvmeTier::Open(std::move(nvme_options), *core, clock));
  }
  if (!config.gpu.device.empty()) {
    tiers::GpuTier::Options gpu_options;
    gpu_options.device = config.gpu.device;
    gpu_options.bytes = config.gpu.bytes;
    gpu_options.slab_bytes = tiers::ChooseSlabBytes(config.gpu.bytes);
    ASSIGN_OR_RETURN(gpu, tiers::GpuTier::Create(gpu_options, *core, clock));
  }
  // The devices exist before the memory that they are told of.
  dram_options.hooks = {.on_prepared =
                            [this](MutableRegion region) {
                              if (nvme != nullptr) nvme->RegisterMemory(region);
                              if (gpu != nullptr) gpu->RegisterMemory(region);
                            },
                        .on_going =
                            [this](MutableRegion region) {
                              if (nvme != nullptr) nvme->UnregisterMemory(region);
                              if (gpu != nullptr) gpu->UnregisterMemory(region);
                            }};
  dram_options.slab_bytes = tiers::ChooseSlabBytes(config.dram.bytes);
  dram_options.bytes = config.dram.bytes;
  dram_options.huge_pages = config.dram.hugepages == HugePages::kAuto
                                ? transfer::SealedMemory::HugePages::kTry
                                : transfer::SealedMemory::HugePages::kOff;
  if (config.dram.backing == Backing::kKept) {
    RETURN_IF_ERROR(
        SdDescriptorStore::CheckRoomFor(tiers::DramTier::DescriptorsKeptFor(dram_options)));
    dram_options.keeper = &descriptors;
    dram_options.boot = ReadBootId();
    dram_options.hold_time = config.limits.lease_time;
  } else {
    tiers::KeptMemory::ForgetAll(descriptors);  // of a daemon with another configuration
  }
  ASSIGN_OR_RETURN(dram, tiers::DramTier::Create(dram_options, *core, clock));
  LogKeptStart();
  return absl::OkStatus();
}

void Daemon::State::LogKeptStart() {
  const std::optional<tiers::DramTier::KeptStart>& kept = dram->kept_start();
  if (!kept.has_value()) return;
  if (!kept->why_cold.empty()) {
    Log(LogLevel::kWarning, "the kept memory is left aside, the DRAM tier starts cold",
        {{"reason", kept->why_cold}});
  }
  Log(LogLevel::kInfo, "DRAM memory is kept",
      {{"slabs_found", kept->slabs},
       {"pages_found", kept->found.pages},
       {"slots_held", kept->found.reserved},
       {"entries_damaged", kept->found.damaged}});
}

absl::Status Daemon::State::OpenStore() {
  const store::StoreOptions options = StoreOptionsOf(config);
  RETURN_IF_ERROR(options.Validate());
  core->RunAndWait([this, &options] {
    store = std::make_unique<store::Store>(
        options, store::Store::Tiers{.gpu = gpu.get(), .dram = dram.get(), .nvme = nvme.get()},
        *core, clock);
    const bool has_durable = nvme != nullptr || dram->durable() != nullptr;
    store->Start([has_durable](absl::Status recovered) {
      if (!recovered.ok()) return Log(LogLevel::kError, "recovery failed", {{"status", recovered}});
      if (has_durable) Log(LogLevel::kInfo, "recovery finished");
    });
  });
  return absl::OkStatus();
}

// A descriptor limit below what the caps promise would end in refusals at random places: the caps
// are lowered instead, and it is said.
service::ServiceOptions Daemon::State::FitToFileLimit(service::ServiceOptions options) {
  const uint64_t limit = RaiseFileLimit();
  const uint64_t used = CountOpenFiles() + kSpareFiles + (nvme != nullptr ? kSpareFilesNvme : 0);
  const uint64_t available = limit > used ? limit - used : 0;
  // With TLS there are as many connections more, and each takes three descriptors.
  const uint64_t files_each = options.tls == nullptr ? 1 : 4;
  if (options.connections_max * files_each + options.sessions_max <= available) return options;
  options.connections_max = std::min<uint64_t>(options.connections_max,
                                               std::max<uint64_t>(available / 2 / files_each, 1));
  options.sessions_max =
      std::min<uint64_t>(options.sessions_max, std::max<uint64_t>(available / 2, 1));
  absl::MutexLock lock(&mutex);
  degraded.push_back(absl::StrCat("open files are limited to ", limit, ": at most ",
                                  options.connections_max, " connections and ",
                                  options.sessions_max, " sessions; raise LimitNOFILE"));
  return options;
}

absl::Status Daemon::State::OpenService() {
  service::ServiceOptions options;
  options.listen = config.server.listen;
  options.admin = config.server.admin;
  options.own_uid = geteuid();
  options.allow_uids = config.auth.allow_uids;
  if (!config.auth.tenants.empty()) {
    ASSIGN_OR_RETURN(options.tenants, service::LoadTenantsFile(config.auth.tenants));
  }
  if (!config.auth.tls_cert.empty()) {
    ASSIGN_OR_RETURN(options.tls, service::TlsContext::Load(TlsFilesOf(config)));
  }
  options.sessions_max = config.server.sessions_max;
  options.call_deadline = config.limits.call_deadline;
  options.bulk_deadline = config.limits.bulk_deadline;
  options.lease_time = config.limits.lease_time;
  options.handshake_time = config.limits.handshake_time;
  options.calls = {.calls = config.limits.calls,
                   .calls_per_tenant = config.limits.calls_per_tenant,
                   .bytes = config.limits.call_bytes};
  options.core_queue = config.limits.core_queue;
  options.connections_max = config.limits.connections;
  options.connections_per_uid_max = config.limits.connections_per_uid;
  for (const std::string& address : options.listen) {
    if (!address.starts_with("tcp:") || !config.server.insecure) continue;
    absl::MutexLock lock(&mutex);
    degraded.push_back(absl::StrCat(
        address, " has no authentication: every local process may act for tenant 'default'"));
  }
  service::DaemonFacts facts;
  facts.version = KVSTORE_VERSION;
  facts.commit = KVSTORE_COMMIT;
  facts.incarnation = RandomIncarnation();
  facts.started = clock.Now();
  facts.config = [this] { return ConfigRows(); };
  facts.degraded = [this] { return Degraded(); };
  const auto exporter = [this](tiers::TierKind tier, uint32_t slab, std::string_view tenant,
                               MemoryAccess access) -> absl::StatusOr<service::ExportedSlab> {
    tiers::MemoryTier* owner = nullptr;
    if (tier == tiers::TierKind::kGpu) owner = gpu.get();
    if (tier == tiers::TierKind::kDram) owner = dram.get();
    if (owner == nullptr) return absl::NotFoundError("no such slab");
    ASSIGN_OR_RETURN(tiers::SlabExport exported, owner->Export(slab, tenant, access));
    return service::ExportedSlab{.slab = std::move(exported.slab),
                                 .generations = std::move(exported.generations),
                                 .slab_bytes = exported.slab_bytes};
  };
  ASSIGN_OR_RETURN(service, service::Service::Create(FitToFileLimit(std::move(options)), *store,
                                                     *core, exporter, std::move(facts), clock));
  return service->Start();
}

absl::Status Daemon::State::OpenMonitoring() {
  if (config.server.http.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      http, StartMonitoring(config.server.http, {.core = *core,
                                                 .store = *store,
                                                 .service = *service,
                                                 .clock = clock,
                                                 .version = KVSTORE_VERSION,
                                                 .commit = KVSTORE_COMMIT,
                                                 .degraded = [this] { return Degraded(); }}));
  return absl::OkStatus();
}

std::vector<std::string> Daemon::State::Degraded() {
  absl::MutexLock lock(&mutex);
  std::vector<std::string> lines = degraded;
  for (const auto& [what, error] : reload_errors)
    lines.push_back(absl::StrCat(what, " not reloaded, the old content stays: ", error));
  return lines;
}

void Daemon::State::NoteReload(const std::string& what, const absl::Status& status) {
  if (status.ok()) {
    Log(LogLevel::kInfo, "reloaded", {{"what", what}});
  } else {
    Log(LogLevel::kError, "not reloaded, the old content stays",
        {{"what", what}, {"status", status}});
  }
  absl::MutexLock lock(&mutex);
  if (status.ok()) {
    reload_errors.erase(what);
  } else {
    reload_errors[what] = std::string(status.message());
  }
}

absl::Status Daemon::State::ReloadKeys() {
  ASSIGN_OR_RETURN(auto keys, tiers::MasterKeys::Read(config.nvme.key_file));
  absl::Status replaced;
  core->RunAndWait([&] { replaced = nvme->ReplaceKeys(std::move(keys)); });
  return replaced;
}

std::vector<service::DaemonFacts::ConfigRow> Daemon::State::ConfigRows() {
  absl::MutexLock lock(&mutex);
  std::vector<service::DaemonFacts::ConfigRow> rows;
  for (const ConfigValue& value : values) rows.push_back({value.key, value.value, value.source});
  return rows;
}

void Daemon::State::LogStart() {
  Log(LogLevel::kInfo, "serving",
      {{"version", VersionText()},
       {"pid", getpid()},
       {"listen", absl::StrJoin(config.server.listen, ",")},
       {"dram", FormatBytes(config.dram.bytes)},
       {"gpu", gpu == nullptr ? "none" : FormatBytes(config.gpu.bytes)},
       {"nvme", nvme == nullptr ? "none" : FormatBytes(config.nvme.bytes)}});
  std::vector<std::string> lines = Degraded();
  core->RunAndWait([this, &lines] {
    for (const store::TierRow& row : store->status().tiers) {
      if (!row.degraded.empty()) lines.push_back(row.degraded);
    }
  });
  for (const std::string& line : lines) Log(LogLevel::kWarning, "degraded", {{"mode", line}});
}

absl::Status Daemon::State::Drain(absl::Duration time) {
  // Shared with the store's callback, which may come when we have stopped waiting.
  struct Outcome {
    absl::Notification is_known;
    absl::StatusOr<store::DrainResult> result = absl::UnknownError("");
  };
  auto outcome = std::make_shared<Outcome>();
  core->Post([this, outcome] {
    store->Drain([outcome](absl::StatusOr<store::DrainResult> result) {
      outcome->result = std::move(result);
      outcome->is_known.Notify();
    });
  });
  if (!outcome->is_known.WaitForNotificationWithTimeout(time)) {
    return absl::DeadlineExceededError(
        "moves between tiers were not finished in time; blocks that are in DRAM only are lost");
  }
  RETURN_IF_ERROR(outcome->result.status());
  Log(LogLevel::kInfo, "drained",
      {{"written_blocks", outcome->result->written_blocks},
       {"memory_only_blocks", outcome->result->memory_only_blocks}});
  return absl::OkStatus();
}

std::string VersionText() { return absl::StrCat(KVSTORE_VERSION, " (", KVSTORE_COMMIT, ")"); }

Daemon::Daemon(std::unique_ptr<State> state) : state_(std::move(state)) {}
Daemon::~Daemon() { Stop(absl::ZeroDuration()).IgnoreError(); }

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(LoadedConfig config) {
  auto state = std::make_unique<State>(std::move(config));
  RaiseFileLimit();
  state->core =
      std::make_unique<EventLoop>("kv-core", state->config.limits.core_queue, state->clock);
  state->core->RunAndWait([] { PreferThisThread(ThreadPreference::kBeforeBulk); });
  // From here on the destructor takes down whatever was opened.
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(state)));
  RETURN_IF_ERROR(daemon->state_->OpenTiers());
  RETURN_IF_ERROR(daemon->state_->OpenStore());
  RETURN_IF_ERROR(daemon->state_->OpenService());
  RETURN_IF_ERROR(daemon->state_->OpenMonitoring());
  daemon->state_->LogStart();
  return daemon;
}

void Daemon::Reload(const LoadedConfig& fresh) {
  LoadedConfig running{.config = state_->config, .values = {}};
  {
    absl::MutexLock lock(&state_->mutex);
    running.values = state_->values;
  }
  const ConfigChange change = CompareConfigs(running, fresh);
  SetLogLevel(fresh.config.log.level);
  {
    absl::MutexLock lock(&state_->mutex);
    for (size_t i = 0; i < state_->values.size(); ++i) {
      if (std::ranges::find(change.live, state_->values[i].key) != change.live.end())
        state_->values[i] = fresh.values[i];
    }
  }
  Log(LogLevel::kInfo, "configuration reloaded",
      {{"changed", absl::StrJoin(change.live, ",")},
       {"needs_restart", absl::StrJoin(change.needs_restart, ",")}});
}

void Daemon::ReloadAccess() {
  State& state = *state_;
  if (!state.config.auth.tenants.empty()) {
    absl::StatusOr<std::vector<service::TenantRule>> tenants =
        service::LoadTenantsFile(state.config.auth.tenants);
    absl::Status reloaded = tenants.status();
    if (tenants.ok()) reloaded = state.service->ReloadTenants(*std::move(tenants));
    state.NoteReload("tenants file", reloaded);
  }
  if (state.nvme != nullptr && !state.config.nvme.encrypt.empty())
    state.NoteReload("key file", state.ReloadKeys());
  if (state.config.auth.tls_cert.empty()) return;
  absl::StatusOr<std::shared_ptr<const service::TlsContext>> tls =
      service::TlsContext::Load(TlsFilesOf(state.config));
  if (tls.ok()) state.service->ReloadTls(*tls);
  state.NoteReload("certificates", tls.status());
}

absl::Status Daemon::Stop(absl::Duration drain_time) {
  State& state = *state_;
  if (state.is_stopped) return absl::OkStatus();
  state.is_stopped = true;
  absl::Status unfinished;
  if (state.service != nullptr) state.service->SetStopping();
  if (state.store != nullptr && drain_time > absl::ZeroDuration())
    unfinished = state.Drain(drain_time);
  if (state.service != nullptr) state.service->Stop(kStopGrace);
  state.http.reset();  // what it asked of the core runs before the store goes
  state.core->RunAndWait([&state] {
    if (state.nvme != nullptr) state.nvme->Stop();
    if (state.gpu != nullptr) state.gpu->Stop();
    if (state.dram != nullptr) state.dram->Stop();
  });
  // Completions that the tiers posted while stopping run before the store goes.
  state.core->RunAndWait([] {});
  state.core->RunAndWait([&state] { state.store.reset(); });
  state.core->Stop();
  state.service.reset();
  state.nvme.reset();
  state.gpu.reset();
  state.dram.reset();
  return unfinished;
}

}  // namespace kvstore::daemon
