#include "tests/integration/daemon_process.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>

#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"

namespace kvstore::testing {
namespace {

std::string ProgramPath(const std::string& name) {
  const char* dir = getenv("KVSTORE_BIN_DIR");
  return std::string(dir == nullptr ? "bin" : dir) + "/" + name;
}

}  // namespace

bool IsRunning(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(in, text);
  const size_t state = text.rfind(')');
  return state != std::string::npos && text.substr(state + 2, 1) != "Z";
}

namespace {

std::vector<std::string> ArgumentsOf(const DaemonOptions& options, const std::string& target) {
  std::vector<std::string> arguments = {"--set", "server.listen=" + target, "--set",
                                        "tier.dram.bytes=64MiB"};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  for (const std::string& set : options.sets) {
    arguments.push_back("--set");
    arguments.push_back(set);
  }
  return arguments;
}

}  // namespace

DaemonProcess::DaemonProcess() {
  std::string pattern = "/tmp/kvstored-test-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) abort();
  folder_ = pattern;
}

DaemonProcess::~DaemonProcess() {
  const pid_t child = has_keeper_ && pid_ > 0 ? daemon_pid() : -1;
  if (pid_ > 0) KillHard();
  if (child > 0) kill(child, SIGKILL);
  Eventually(absl::Seconds(5), [child] { return child <= 0 || !IsRunning(child); });
  if (::testing::Test::HasFailure()) std::fprintf(stderr, "log of kvstored:\n%s\n", Log().c_str());
  std::filesystem::remove_all(folder_);
}

void DaemonProcess::Spawn(const std::vector<std::string>& arguments, const DaemonOptions& options) {
  std::string program = ProgramPath("kvstored");
  std::vector<std::string> keeping;
  if (options.keeper.has_value()) {
    // Each kvstored that it starts reads its arguments anew.
    const std::string kvstored = std::exchange(program, ProgramPath("kvkeep"));
    keeping = *options.keeper;
    for (const std::string& word :
         {std::string("--"), std::string("/bin/sh"), std::string("-c"),
          std::string("exec \"$0\" $(cat \"$1\")"), kvstored, folder_ + "/arguments"})
      keeping.push_back(word);
  }
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : options.keeper.has_value() ? keeping : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const std::string log = folder_ + "/log";
  const std::string cgroup =
      options.memory_cgroup.empty() ? "" : options.memory_cgroup + "/cgroup.procs";
  pid_ = fork();
  ASSERT_GE(pid_, 0);
  if (pid_ > 0) return;
  // Child: only what is safe after fork() in a program with threads.
  const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, 1);
  dup2(fd, 2);
  for (int other = 3; other < 1024; ++other) close(other);
  if (options.open_files > 0) {
    const rlimit limit{.rlim_cur = options.open_files, .rlim_max = options.open_files};
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (options.locked_bytes > 0) {
    const rlimit limit{.rlim_cur = options.locked_bytes, .rlim_max = options.locked_bytes};
    setrlimit(RLIMIT_MEMLOCK, &limit);
    prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK);  // root would not feel the limit
  }
  if (!cgroup.empty()) {
    const int procs = open(cgroup.c_str(), O_WRONLY);
    if (write(procs, "0", 1) != 1) _exit(126);
    close(procs);
  }
  execv(argv[0], argv.data());
  constexpr std::string_view kHint =
      "cannot be run; KVSTORE_BIN_DIR names the folder of kvstored\n";
  (void)!write(2, kHint.data(), kHint.size());
  _exit(127);
}

void DaemonProcess::Start(const DaemonOptions& options) {
  has_keeper_ = options.keeper.has_value();
  if (has_keeper_) SetArguments(options);
  ASSERT_NO_FATAL_FAILURE(Spawn(ArgumentsOf(options, target()), options));
  WaitUntilItAnswers();
}

void DaemonProcess::SetArguments(const DaemonOptions& options) {
  std::ofstream out(folder_ + "/arguments");
  for (const std::string& argument : ArgumentsOf(options, target())) out << argument << "\n";
}

void DaemonProcess::WaitUntilItAnswers() {
  std::unique_ptr<client::Client> client = Connect();
  absl::Status connected;
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  do {
    connected = client->WaitConnected(absl::Now() + absl::Milliseconds(200));
    ASSERT_EQ(waitpid(pid_, nullptr, WNOHANG), 0) << "kvstored ended: " << Log();
  } while (!connected.ok() && absl::Now() < give_up);
  ASSERT_TRUE(connected.ok()) << connected << "\n" << Log();
}

void DaemonProcess::WaitUntilAnotherAnswers(pid_t than) {
  ASSERT_TRUE(Eventually(absl::Seconds(15), [&] {
    const pid_t now = daemon_pid();
    return now > 0 && now != than;
  })) << Log();
  WaitUntilItAnswers();
}

pid_t DaemonProcess::daemon_pid() const {
  if (!has_keeper_) return pid_;
  const std::string pid = std::to_string(pid_);
  std::ifstream in("/proc/" + pid + "/task/" + pid + "/children");
  pid_t child = -1;
  in >> child;
  return child;
}

int DaemonProcess::RunToExit(const std::vector<std::string>& arguments,
                             const DaemonOptions& options) {
  Spawn(arguments, options);
  return WaitExit(absl::Seconds(20));
}

void DaemonProcess::Signal(int signal) const { kill(pid_, signal); }

int DaemonProcess::WaitExit(absl::Duration timeout) {
  int status = 0;
  const bool has_ended =
      Eventually(timeout, [&] { return waitpid(pid_, &status, WNOHANG) == pid_; });
  if (!has_ended) return -1;
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void DaemonProcess::KillHard() {
  Signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::string DaemonProcess::Log() const {
  std::ifstream in(folder_ + "/log");
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

uint64_t DaemonProcess::ResidentBytes() const {
  std::ifstream in("/proc/" + std::to_string(pid_) + "/statm");
  uint64_t size = 0, resident = 0, shared = 0;
  in >> size >> resident >> shared;
  // Without slabs, which are shared memory: what the daemon itself holds.
  return (resident - shared) * 4096;
}

uint64_t DaemonProcess::OpenFiles() const {
  uint64_t count = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"))
    ++count;
  return count;
}

std::unique_ptr<client::Client> DaemonProcess::Connect(client::ClientOptions options) const {
  if (options.target.empty()) options.target = target();
  absl::StatusOr<std::unique_ptr<client::Client>> client = client::Client::Create(options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

v1::StatusResponse DaemonProcess::Status() const {
  auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(target())));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  context.set_wait_for_ready(true);
  v1::StatusResponse response;
  const grpc::Status status = stub->Status(&context, v1::StatusRequest(), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

v1::EvictResponse DaemonProcess::Evict(const std::string& ns, v1::Tier tier) const {
  auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(target())));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  v1::EvictRequest request;
  request.set_namespace_(ns);
  request.set_tier(tier);
  v1::EvictResponse response;
  const grpc::Status status = stub->Evict(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

NamespaceSpec SmallSpec(uint32_t num_slices, uint32_t slice_bytes) {
  NamespaceSpec spec;
  spec.model = "test-model";
  spec.kv_dtype = "bf16";
  spec.block_tokens = 16;
  spec.shape = {.num_slices = num_slices, .slice_bytes = slice_bytes};
  return spec;
}

std::vector<uint32_t> Tokens(const NamespaceSpec& spec, size_t blocks, uint32_t seed) {
  std::vector<uint32_t> tokens(blocks * spec.block_tokens);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = seed * 7919u + static_cast<uint32_t>(i);
  return tokens;
}

std::vector<std::byte> PageBytes(const NamespaceSpec& spec, const BlockHash& hash) {
  std::vector<std::byte> page(spec.shape.page_bytes());
  uint64_t state = hash.Prefix64() | 1;
  for (size_t i = 0; i < page.size(); i += sizeof state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(page.data() + i, &state, std::min(sizeof state, page.size() - i));
  }
  return page;
}

std::vector<std::byte> PagesBytes(const NamespaceSpec& spec, std::span<const BlockHash> hashes) {
  std::vector<std::byte> pages;
  for (const BlockHash& hash : hashes) {
    const std::vector<std::byte> page = PageBytes(spec, hash);
    pages.insert(pages.end(), page.begin(), page.end());
  }
  return pages;
}

}  // namespace kvstore::testing
