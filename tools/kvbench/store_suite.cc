#include <optional>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/store_parts.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {
namespace {

constexpr uint64_t kPageBytes[] = {uint64_t{2} << 20, uint64_t{256} << 10, uint64_t{64} << 10};
constexpr char kRedisPrefix[] = "redis=unix:";

}  // namespace

absl::Status RunStoreSuite(const Settings& settings, Report& report) {
  ASSIGN_OR_RETURN(EchoProcess echo, EchoProcess::Start());  // first: it forks
  std::optional<RedisPeer> redis;
  for (const std::string& peer : settings.versus) {
    ASSIGN_OR_RETURN(RedisPeer connected, RedisPeer::Connect(peer.substr(sizeof kRedisPrefix - 1)));
    redis.emplace(std::move(connected));
    ASSIGN_OR_RETURN(const std::string version, redis->Version());
    report.AddNote(absl::StrCat("redis ", version, " through hiredis, one connection, MSET and ",
                                "MGET of a batch; its values stay in hiredis' memory"));
  }
  if (!redis) {
    report.AddNote("no figures of Redis: give --versus redis=unix:PATH of a running server");
  }
  report.AddNote(absl::StrCat(
      "pages: a set of ", SizeName(settings.set_bytes), " in batches of 32 pages, distinct random ",
      "bytes, checksums on, every byte compared after each pass; client and daemon are processes"));
  RETURN_IF_ERROR(MeasureLookups(settings, echo, report));
  for (const uint64_t page_bytes : kPageBytes) {
    RETURN_IF_ERROR(MeasurePages(settings, page_bytes, redis ? &*redis : nullptr, report));
  }
  return MeasureIdle(settings, report);
}

}  // namespace kvstore::bench
