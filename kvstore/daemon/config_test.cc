#include "kvstore/daemon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace kvstore::daemon {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Machine kMachine{.memory_bytes = uint64_t{16} << 30,
                       .default_socket_path = "/run/kvstore/kvstored.sock"};

absl::StatusOr<LoadedConfig> Load(std::string_view toml,
                                  const std::vector<std::string>& sets = {}) {
  return LoadConfigText(toml, "test.toml", sets, kMachine);
}

std::string ErrorOf(std::string_view toml, const std::vector<std::string>& sets = {}) {
  absl::StatusOr<LoadedConfig> loaded = Load(toml, sets);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(loaded.status().message());
}

TEST(Config, WithoutAnythingThereIsASocketAQuarterOfMemoryAndNoNetwork) {
  const Config config = Load("")->config;
  EXPECT_THAT(config.server.listen, ElementsAre("unix:/run/kvstore/kvstored.sock"));
  EXPECT_EQ(config.dram.bytes, uint64_t{4} << 30);
  EXPECT_TRUE(config.nvme.dirs.empty());
  EXPECT_TRUE(config.gpu.device.empty());
}

TEST(Config, DefaultDramIsAtMost8GiB) {
  Machine large = kMachine;
  large.memory_bytes = uint64_t{1} << 40;
  EXPECT_EQ(LoadConfigText("", "", {}, large)->config.dram.bytes, uint64_t{8} << 30);
}

TEST(Config, EverySectionIsRead) {
  absl::StatusOr<LoadedConfig> loaded = Load(R"(
    [server]
    listen = ["unix:/tmp/a.sock", "tcp:127.0.0.1:7000"]
    insecure = true
    [auth]
    allow_uids = [1000, 1001]
    [tier.gpu]
    device = "host"
    bytes = "1GiB"
    [tier.dram]
    bytes = "50%"
    hugepages = "off"
    [tier.nvme]
    dirs = ["/data/a", "/data/b"]
    bytes = "100GiB"
    queue_depth = 32
    [policy]
    write = "back"
    [limits]
    lease_time = "5s"
    [log]
    level = "debug"
    format = "json"
  )");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Config& config = loaded->config;
  EXPECT_THAT(config.server.listen, ElementsAre("unix:/tmp/a.sock", "tcp:127.0.0.1:7000"));
  EXPECT_THAT(config.auth.allow_uids, ElementsAre(1000, 1001));
  EXPECT_EQ(config.gpu.bytes, uint64_t{1} << 30);
  EXPECT_EQ(config.dram.bytes, uint64_t{8} << 30);
  EXPECT_EQ(config.dram.hugepages, HugePages::kOff);
  EXPECT_THAT(config.nvme.dirs, ElementsAre("/data/a", "/data/b"));
  EXPECT_EQ(config.nvme.queue_depth, 32u);
  EXPECT_EQ(config.policy.write_to_dram, kvstore::policy::WriteMode::kBack);
  EXPECT_EQ(config.policy.write_to_nvme, kvstore::policy::WriteMode::kBack);
  EXPECT_EQ(config.limits.lease_time, absl::Seconds(5));
  EXPECT_EQ(config.log.level, LogLevel::kDebug);
  EXPECT_EQ(config.log.format, LogFormat::kJson);
}

TEST(Config, PolicyWriteIsANameOrATableByTier) {
  const Config config = Load("[policy.write]\nnvme = \"back\"\n")->config;
  EXPECT_EQ(config.policy.write_to_dram, kvstore::policy::WriteMode::kThrough);
  EXPECT_EQ(config.policy.write_to_nvme, kvstore::policy::WriteMode::kBack);
}

TEST(Config, SetWinsOverTheFileAndTheSourceTells) {
  absl::StatusOr<LoadedConfig> loaded =
      Load("[log]\nlevel = \"debug\"\nformat = \"json\"\n", {"log.level=error"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.log.level, LogLevel::kError);
  std::map<std::string, std::string> sources;
  for (const ConfigValue& value : loaded->values) sources[value.key] = value.source;
  EXPECT_EQ(sources["log.level"], "--set");
  EXPECT_EQ(sources["log.format"], "file test.toml");
  EXPECT_EQ(sources["policy.evict"], "default");
}

TEST(Config, SetTakesListsWithCommasOrAsToml) {
  EXPECT_THAT(Load("", {"auth.allow_uids=7,8"})->config.auth.allow_uids, ElementsAre(7, 8));
  EXPECT_THAT(Load("", {"auth.allow_uids=[7, 8]"})->config.auth.allow_uids, ElementsAre(7, 8));
}

TEST(Config, SetTakesAnIpv6AddressWhichIsNoList) {
  const absl::StatusOr<LoadedConfig> loaded = Load("", {"server.http=[::1]:9464"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.server.http, "[::1]:9464");
}

TEST(Config, AnUnknownKeyIsRefusedWithKeyValueAndValidOnes) {
  EXPECT_THAT(ErrorOf("[tier.dram]\nbites = \"1GiB\"\n"),
              AllOf(HasSubstr("tier.dram.bites"), HasSubstr("'1GiB'"), HasSubstr("unknown key"),
                    HasSubstr("tier.dram.bytes")));
  EXPECT_THAT(ErrorOf("", {"colour.red=1"}),
              AllOf(HasSubstr("colour.red"), HasSubstr("sections server, auth, tier")));
}

TEST(Config, KeysOfLaterVersionsAreUnknown) {
  for (const char* set : {"tier.peer.listen=a", "tier.shared.url=redis://a", "policy.admit=always",
                          "policy.prefetch=none"}) {
    EXPECT_THAT(ErrorOf("", {set}), HasSubstr("unknown key")) << set;
  }
}

TEST(Config, BadValuesAreRefusedWithKeyValueAndRange) {
  const struct {
    const char* set;
    const char* part;
  } cases[] = {
      {"tier.dram.bytes=12", "tier.dram.bytes = '12'"},
      {"tier.dram.bytes=12XB", "valid: 1MiB to 16TiB"},
      {"tier.dram.bytes=101%", "tier.dram.bytes"},
      {"tier.dram.bytes=1KiB", "out of range"},
      {"tier.dram.hugepages=maybe", "valid: auto, off"},
      {"tier.dram.backing=/dev/shm/kv", "valid: none, kept"},
      {"tier.gpu.device=cuda:", "valid: host, cuda:N"},
      {"tier.gpu.device=cuda:x", "valid: host, cuda:N"},
      {"tier.gpu.device=rocm:0", "valid: host, cuda:N"},
      {"tier.nvme.bytes=10%", "tier.nvme.bytes"},
      {"tier.nvme.dirs=relative", "absolute"},
      {"tier.nvme.dirs=/a,/a", "twice"},
      {"tier.nvme.queue_depth=0", "valid: 1 to 1024"},
      {"tier.nvme.queue_depth=x", "not an integer"},
      {"tier.nvme.queue_depth=-1", "not an integer"},
      {"server.listen=http:1", "neither unix:PATH nor tcp:HOST:PORT"},
      {"server.listen=", "empty list"},
      {"server.http=0.0.0.0:9464", "not a loopback address"},
      {"server.http=127.0.0.1", "no port"},
      {"server.http=[::2]:1", "not a loopback address"},
      {"tier.dram.bytes=17GiB", "more than the memory of this machine or cgroup"},
      {"server.sessions_max=99999999999999999999", "not an integer"},
      {"auth.allow_uids=4294967295", "out of range"},
      {"auth.allow_uids=root", "not an integer"},
      {"policy.write=sideways", "valid: through, back"},
      {"policy.evict=random", "valid: lru"},
      {"limits.lease_time=5", "limits.lease_time"},
      {"limits.lease_time=1ms", "out of range"},
      {"log.level=loud", "valid: debug, info, warning, error"},
      {"nonsense", "not section.key=value"},
  };
  for (const auto& c : cases) EXPECT_THAT(ErrorOf("", {c.set}), HasSubstr(c.part)) << c.set;
}

TEST(Config, TypesThatDoNotFitAreRefused) {
  EXPECT_THAT(ErrorOf("[server]\nlisten = \"unix:/a\"\n"), HasSubstr("not a list"));
  EXPECT_THAT(ErrorOf("[log]\nlevel = [\"info\"]\n"),
              HasSubstr("a list where one value is wanted"));
  EXPECT_THAT(ErrorOf("[limits]\ncalls = 1.5\n"), HasSubstr("neither a string nor an integer"));
  EXPECT_THAT(ErrorOf("server = 3\n"), HasSubstr("unknown key"));
}

TEST(Config, ASyntaxErrorNamesFileAndLine) {
  EXPECT_THAT(ErrorOf("[log]\nlevel = \n"), HasSubstr("test.toml:2"));
}

TEST(Config, TiersNeedTheirSize) {
  EXPECT_THAT(ErrorOf("", {"tier.nvme.dirs=/a"}), HasSubstr("tier.nvme.bytes is not"));
  EXPECT_THAT(ErrorOf("", {"tier.nvme.bytes=1GiB"}), HasSubstr("tier.nvme.dirs is not"));
  EXPECT_THAT(ErrorOf("", {"tier.gpu.device=host"}), HasSubstr("tier.gpu.bytes is not"));
  EXPECT_THAT(ErrorOf("", {"tier.gpu.device=host", "tier.gpu.bytes=17GiB"}),
              HasSubstr("more than the memory of this machine"));
  EXPECT_TRUE(Load("", {"tier.gpu.device=cuda:0", "tier.gpu.bytes=100GiB"}).ok())
      << "a device has memory of its own";
}

TEST(Config, AMissingFileIsNotFound) {
  EXPECT_EQ(LoadConfig("/nonexistent/kvstored.toml", {}, kMachine).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(LoadConfig("/", {}, kMachine).ok());
}

TEST(Config, PrintedValuesCanBeGivenBack) {
  absl::StatusOr<LoadedConfig> first =
      Load("", {"tier.dram.bytes=1500MiB", "tier.gpu.device=host", "tier.gpu.bytes=1048577B",
                "limits.lease_time=90s", "limits.move_deadline=1500ms", "tier.nvme.dirs=/a,/b",
                "tier.nvme.bytes=3GiB", "auth.allow_uids=1"});
  ASSERT_TRUE(first.ok()) << first.status();
  std::vector<std::string> sets;
  for (const ConfigValue& value : first->values) {
    sets.push_back(value.key + "=" + value.value);
  }
  absl::StatusOr<LoadedConfig> second = Load("", sets);
  ASSERT_TRUE(second.ok()) << second.status();
  for (size_t i = 0; i < first->values.size(); ++i) {
    EXPECT_EQ(first->values[i].value, second->values[i].value);
  }
}

TEST(Config, ListsWhoseElementsHaveCommasCanBeGivenBackToo) {
  const std::vector<std::string> names = {"a,b", "[c", "d\"\\\n"};
  const auto first = Load(
      "[tier.nvme]\ndirs = [\"/a\"]\nbytes = \"1GiB\"\nkey_file = \"/k\"\n"
      "encrypt = ['a,b', '[c', \"d\\\"\\\\\\n\"]\n");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->config.nvme.encrypt, names);
  std::vector<std::string> sets;
  for (const ConfigValue& value : first->values) {
    if (value.source != "default") sets.push_back(value.key + "=" + value.value);
  }
  const auto second = Load("", sets);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->config.nvme.encrypt, names);
}

TEST(Config, AQuotedNameWithADotIsRefused) {
  EXPECT_THAT(ErrorOf("\"limits.calls\" = 5\n[limits]\ncalls = 6\n"), HasSubstr("a dot in"));
}

TEST(Config, CharactersBeyondAsciiAreNamedWhereTheyAreWrong) {
  EXPECT_THAT(ErrorOf("\u030f"), HasSubstr("test.toml:1"));
  EXPECT_TRUE(Load("# caf\u00e9\n").ok());
}

TEST(Config, AReloadTellsWhatNeedsARestart) {
  const ConfigChange change =
      CompareConfigs(*Load(""), *Load("", {"log.level=debug", "limits.calls=5"}));
  EXPECT_THAT(change.live, ElementsAre("log.level"));
  EXPECT_THAT(change.needs_restart, ElementsAre("limits.calls"));
}

TEST(Config, AtMost40Keys) { EXPECT_LE(Load("")->values.size(), 40u); }

}  // namespace
}  // namespace kvstore::daemon
