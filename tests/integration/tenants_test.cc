// Tenants through the client library: what they cannot reach of each other, and what a reload of
// the tenants file and of certificates costs those whom it does not concern. Which certificates get
// in: tests/python/test_tls.py; which uids: tests/python/test_tenants.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <set>
#include <thread>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::HasSubstr;

constexpr char kTenants[] =
    "[tenant.team-a]\ncertificates = [\"spiffe://x/a\"]\n"
    "[tenant.team-b]\ncertificates = [\"spiffe://x/b\"]\n"
    "[tenant.salted]\nsalt = \"00112233445566778899aabbccddeeff\"\n";

void Write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
  chmod(path.c_str(), 0600);
}

// Two tenants, named by their owner, who may act for any: what keeps them apart is the store.
class TwoTenants : public ::testing::Test {
 protected:
  TwoTenants() { Write(file_, kTenants); }
  void Start() { ASSERT_NO_FATAL_FAILURE(daemon_.Start({.sets = {"auth.tenants=" + file_}})); }
  std::unique_ptr<Client> ConnectAs(const std::string& tenant) {
    return daemon_.Connect({.tenant = tenant});
  }
  DaemonProcess daemon_;
  const std::string file_ = daemon_.folder() + "/tenants.toml";
};

Namespace Open(Client& client, const NamespaceSpec& spec, const std::string& name = "chat") {
  absl::StatusOr<Namespace> ns = client.Open(name, spec);
  EXPECT_TRUE(ns.ok()) << ns.status();
  return *std::move(ns);
}

// The largest distance between the distributions of two samples of one size (Kolmogorov, Smirnov).
double Distance(std::vector<double> a, std::vector<double> b) {
  std::ranges::sort(a);
  std::ranges::sort(b);
  double largest = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    (a[i] <= b[j] ? i : j) += 1;
    largest = std::max(largest, std::abs(static_cast<double>(i) - static_cast<double>(j)));
  }
  return largest / static_cast<double>(a.size());
}

TEST_F(TwoTenants, NoBlockOfTheOtherIsFoundByItsHashOrItsTimeToAnswer) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::unique_ptr<Client> a = ConnectAs("team-a");
  std::unique_ptr<Client> b = ConnectAs("team-b");
  const Namespace of_a = Open(*a, SmallSpec());
  const Namespace of_b = Open(*b, SmallSpec());
  const std::vector<BlockHash> stored = of_a.Hash(Tokens(of_a.spec, 256, 1));
  ASSERT_TRUE(a->Put(of_a, stored, PagesBytes(of_a.spec, stored)).ok());
  ASSERT_EQ(a->MatchPrefix(of_a, stored)->matched_blocks, 256u);
  EXPECT_EQ(b->MatchPrefix(of_b, stored)->matched_blocks, 0u) << "the very hashes";
  EXPECT_EQ(b->MatchPrefix(of_b, of_b.Hash(Tokens(of_b.spec, 256, 1)))->matched_blocks, 0u)
      << "the same prompt";
  EXPECT_EQ(b->MatchPrefix(of_a, stored).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(b->Clear(of_a).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(b->Find(of_a.fingerprint.Hex()).status().code(), absl::StatusCode::kNotFound);

  // One after the other, so that the machine's mood is the same for both. 1.63: p = 0.01.
  const std::vector<BlockHash> absent = of_a.Hash(Tokens(of_a.spec, 256, 2));
  constexpr size_t kLookups = 2500;
  const double largest_by_chance = 1.63 * std::sqrt(2.0 / kLookups);
  size_t hits = 0;
  double distance = 1;
  for (int attempt = 0; attempt < 4 && distance > largest_by_chance; ++attempt) {
    std::vector<double> times[2];
    for (size_t i = 0; i < 2 * kLookups; ++i) {
      const BlockHash& hash = (i % 2 == 0 ? stored : absent)[i / 2 % 256];
      const absl::Time start = absl::Now();
      hits += b->MatchPrefix(of_b, {&hash, 1})->matched_blocks;
      times[i % 2].push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
    }
    distance = Distance(times[0], times[1]);
  }
  EXPECT_EQ(hits, 0u);
  EXPECT_LE(distance, largest_by_chance) << "what the other has stored shows in the time";
}

// R28: whatever differs in the spec keeps the caches apart, although name, tokens and pages agree.
TEST_F(TwoTenants, EveryFieldOfASpecKeepsCachesApart) {
  ASSERT_NO_FATAL_FAILURE(Start());
  NamespaceSpec base = SmallSpec();
  base.tensor_size = base.pipeline_size = base.context_size = 2;
  const std::vector<std::pair<const char*, std::function<void(NamespaceSpec&)>>> changes = {
      {"model", [](auto& s) { s.model += "x"; }},
      {"weights_revision", [](auto& s) { s.weights_revision = "x"; }},
      {"adapter", [](auto& s) { s.adapter = "x"; }},
      {"kv_dtype", [](auto& s) { s.kv_dtype = "f16"; }},
      {"layout", [](auto& s) { s.layout = "nhd"; }},
      {"layout_version", [](auto& s) { s.layout_version = 2; }},
      {"numerics", [](auto& s) { s.numerics = "x"; }},
      {"block_tokens", [](auto& s) { s.block_tokens = 32; }},
      {"num_slices", [](auto& s) { s.shape = {.num_slices = 8, .slice_bytes = 16384}; }},
      {"slice_bytes", [](auto& s) { s.shape = {.num_slices = 4, .slice_bytes = 32768}; }},
      {"tensor_rank", [](auto& s) { s.tensor_rank = 1; }},
      {"tensor_size", [](auto& s) { s.tensor_size = 4; }},
      {"pipeline_rank", [](auto& s) { s.pipeline_rank = 1; }},
      {"pipeline_size", [](auto& s) { s.pipeline_size = 4; }},
      {"context_rank", [](auto& s) { s.context_rank = 1; }},
      {"context_size", [](auto& s) { s.context_size = 4; }},
      {"salt", [](auto& s) { s.salt = "x"; }},
      {"tenant", [](auto& s) { s.tenant = "team-b"; }},
  };
  std::unique_ptr<Client> client = daemon_.Connect();
  const Namespace ns = Open(*client, base, "base");
  const std::vector<uint32_t> tokens = Tokens(base, 4, 1);
  const std::vector<BlockHash> hashes = ns.Hash(tokens);
  ASSERT_TRUE(client->Put(ns, hashes, PagesBytes(base, hashes)).ok());
  std::set<Fingerprint> fingerprints = {ns.fingerprint};
  for (const auto& [field, change] : changes) {
    SCOPED_TRACE(field);
    NamespaceSpec changed = base;
    change(changed);
    ASSERT_FALSE(changed == base);
    // The client is the owner: it names the tenant of the spec.
    std::unique_ptr<Client> other = ConnectAs(changed.tenant);
    const Namespace theirs = Open(*other, changed, field);
    EXPECT_TRUE(fingerprints.insert(theirs.fingerprint).second);
    EXPECT_EQ(other->MatchPrefix(theirs, theirs.Hash(tokens))->matched_blocks, 0u);
    EXPECT_EQ(other->MatchPrefix(theirs, hashes)->matched_blocks, 0u) << "the very hashes";
  }
  EXPECT_EQ(client->MatchPrefix(ns, hashes)->matched_blocks, 4u);
}

TEST_F(TwoTenants, ATenantsSaltIsInTheFingerprintAndNotInTheClientsHands) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::unique_ptr<Client> salted = ConnectAs("salted");
  const Namespace ns = Open(*salted, SmallSpec());
  EXPECT_EQ(ns.spec.salt, "");
  EXPECT_NE(ns.fingerprint, ns.spec.ComputeFingerprint());
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 4, 1));
  ASSERT_TRUE(salted->Put(ns, hashes, PagesBytes(ns.spec, hashes)).ok());
  EXPECT_EQ(salted->MatchPrefix(*salted->Find("chat"), hashes)->matched_blocks, 4u);
  NamespaceSpec own = SmallSpec();
  own.salt = "mine";
  EXPECT_THAT(std::string(salted->Open("own", own).status().message()),
              HasSubstr("leave it empty"));
  // Not by the fingerprint that the spec alone would have either.
  EXPECT_EQ(salted->Find(ns.spec.ComputeFingerprint().Hex()).status().code(),
            absl::StatusCode::kNotFound);
}

class Tls : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string f = daemon_.folder();
    const std::string key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    Shell("openssl req -x509 " + key + " -keyout ca.key -out ca.pem -days 2 -subj /CN=ca");
    for (const auto& [name, san] : {std::pair("server", "IP:127.0.0.1"),
                                    {"a", "URI:spiffe://x/a"},
                                    {"b", "URI:spiffe://x/b"},
                                    {"server2", "IP:127.0.0.1"}}) {
      const std::string n = name;
      Shell("openssl req " + key + " -keyout " + n + ".key -out " + n + ".csr -subj /CN=" + n +
            " -addext subjectAltName=" + san);
      Shell("openssl x509 -req -in " + n +
            ".csr -CA ca.pem -CAkey ca.key -CAcreateserial "
            "-copy_extensions copy -days 2 -out " +
            n + ".pem");
    }
    Install("server");
    Write(f + "/tenants.toml", kTenants);
    address_ = "tcp:127.0.0.1:" + std::to_string(20000 + getpid() % 20000);
    ASSERT_NO_FATAL_FAILURE(daemon_.Start(
        {.sets = {"server.listen=" + daemon_.target() + "," + address_,
                  "auth.tenants=" + f + "/tenants.toml", "auth.tls_cert=" + f + "/live.pem",
                  "auth.tls_key=" + f + "/live.key", "auth.tls_client_ca=" + f + "/ca.pem"}}));
  }
  void Shell(const std::string& command) {
    ASSERT_EQ(system(("cd " + daemon_.folder() + " && " + command + " 2>openssl.log").c_str()), 0)
        << command;
  }
  void Install(const std::string& name) {
    Shell("cp " + name + ".pem live.pem && cp -f " + name + ".key live.key && chmod 0600 live.key");
  }
  std::unique_ptr<Client> ConnectAs(const std::string& name) {
    const std::string stem = daemon_.folder() + "/" + name;
    return daemon_.Connect(
        {.target = address_,
         .tls = client::TlsFiles{
             .cert = stem + ".pem", .key = stem + ".key", .ca = daemon_.folder() + "/ca.pem"}});
  }
  DaemonProcess daemon_;
  std::string address_;
};

// One round of a client: puts a prefix and gets it back.
absl::Status RoundTrip(Client& client, const Namespace& ns, uint32_t seed) {
  const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 8, seed));
  const std::vector<std::byte> pages = PagesBytes(ns.spec, hashes);
  absl::StatusOr<client::PutResult> put = client.Put(ns, hashes, pages);
  if (!put.ok()) return put.status();
  std::vector<std::byte> read(pages.size());
  absl::StatusOr<client::GetResult> got = client.Get(ns, hashes, read);
  if (!got.ok()) return got.status();
  if (got->delivered_blocks == 8 && read != pages) return absl::DataLossError("wrong bytes");
  return absl::OkStatus();
}

TEST_F(Tls, ReloadsUnderLoadCostThoseWhoStayNothing) {
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> rounds{0};
  std::vector<std::thread> threads;
  for (const char* name : {"a", "b"}) {
    threads.emplace_back([&, name] {
      std::unique_ptr<Client> client = ConnectAs(name);
      const Namespace ns = Open(*client, SmallSpec());
      for (uint32_t i = 0; !stop; ++i, ++rounds) {
        const absl::Status status = RoundTrip(*client, ns, i);
        EXPECT_TRUE(status.ok()) << name << ": " << status;
        if (!status.ok()) return;
      }
    });
  }
  ASSERT_TRUE(Eventually(absl::Seconds(20), [&] { return rounds > 4; }));
  constexpr int kReloads = 40;
  for (int i = 0; i < kReloads; ++i) {
    Install(i % 2 == 0 ? "server2" : "server");
    const bool has_guest = i % 2 == 0;
    Write(daemon_.folder() + "/tenants.toml",
          std::string(kTenants) +
              (has_guest ? "[tenant.guest]\nuids = [1234]\ncertificates = [\"g\"]\n" : ""));
    daemon_.Signal(SIGHUP);
    absl::SleepFor(absl::Milliseconds(30));
  }
  const uint32_t before = rounds;
  EXPECT_TRUE(Eventually(absl::Seconds(20), [&] { return rounds > before + 4; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(daemon_.Status().counters().at("tls_ended_by_reload"), 0u);
  EXPECT_EQ(daemon_.Status().counters().at("tls_accepted"), 2u) << "nobody had to come back";
}

TEST_F(Tls, ARemovedTenantIsOutAndComesBackWhenItIsListedAgain) {
  std::unique_ptr<Client> a = ConnectAs("a");
  std::unique_ptr<Client> b = ConnectAs("b");
  const Namespace of_a = Open(*a, SmallSpec());
  const Namespace of_b = Open(*b, SmallSpec());
  Write(daemon_.folder() + "/tenants.toml", "[tenant.team-a]\ncertificates = [\"spiffe://x/a\"]\n");
  daemon_.Signal(SIGHUP);
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] { return !RoundTrip(*b, of_b, 1).ok(); }));
  EXPECT_EQ(RoundTrip(*b, of_b, 2).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RoundTrip(*a, of_a, 1).ok());
  Write(daemon_.folder() + "/tenants.toml", kTenants);
  daemon_.Signal(SIGHUP);
  EXPECT_TRUE(Eventually(absl::Seconds(10), [&] { return RoundTrip(*b, of_b, 3).ok(); }));
}

TEST_F(Tls, AUnixTargetTakesNoCertificates) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Create(
      {.target = daemon_.target(), .tls = client::TlsFiles{.cert = "x", .key = "x", .ca = "x"}});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kInvalidArgument);
  client = Client::Create(
      {.target = address_, .tls = client::TlsFiles{.cert = "/none", .key = "x", .ca = "x"}});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvstore::testing
