// status, tiers, config.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/report.h"
#include "tools/kvctl/tier_names.h"

namespace kvstore::kvctl {
namespace {

using nlohmann::json;

std::string HealthText(v1::StatusResponse::Health health) {
  switch (health) {
    case v1::StatusResponse::HEALTH_SERVING:
      return "serving";
    case v1::StatusResponse::HEALTH_DEGRADED:
      return "degraded";
    case v1::StatusResponse::HEALTH_DRAINING:
      return "draining";
    default:
      return "unknown";
  }
}

json TierJson(const v1::TierStatus& tier) {
  json counters = json::object();
  for (const auto& [name, value] : tier.counters()) counters[name] = value;
  return {{"tier", TierText(tier.tier())},
          {"capacity_bytes", tier.capacity_bytes()},
          {"used_bytes", tier.used_bytes()},
          {"pages", tier.pages()},
          {"hit_pages", tier.hit_pages()},
          {"read_bytes", tier.read_bytes()},
          {"write_bytes", tier.write_bytes()},
          {"evicted_pages", tier.evicted_pages()},
          {"in_flight", tier.in_flight()},
          {"waiting_moves", tier.waiting_moves()},
          {"quarantined_pages", tier.quarantined_pages()},
          {"state", tier.state()},
          {"counters", counters}};
}

json TiersJson(const v1::StatusResponse& status) {
  json tiers = json::array();
  for (const v1::TierStatus& tier : status.tiers()) tiers.push_back(TierJson(tier));
  return tiers;
}

std::string Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-" : absl::StrCat(part * 100 / whole, "%");
}

void PrintStatusText(const v1::StatusResponse& status) {
  std::vector<std::pair<std::string, std::string>> pairs = {
      {"health", HealthText(status.health())},
      {"version", Printable(absl::StrCat(status.version(), status.commit().empty() ? "" : " (",
                                         status.commit(), status.commit().empty() ? "" : ")"))},
      {"uptime", FormatSeconds(status.uptime_s())},
      {"sessions", absl::StrCat(FormatCount(status.sessions()), " (", FormatCount(status.leases()),
                                " leases, ", FormatCount(status.reservations()), " reservations)")},
      {"blocks", absl::StrCat(FormatCount(status.blocks()), " in ",
                              FormatCount(status.namespaces()), " namespaces")}};
  if (status.is_recovering())
    pairs.emplace_back("recovering", "yes: stored blocks are becoming matchable");
  if (status.has_drain()) {
    pairs.emplace_back(
        "draining", absl::StrCat("no saves are taken; ",
                                 FormatCount(status.drain().written_blocks()), " blocks written, ",
                                 FormatCount(status.drain().waiting_blocks()), " to be written"));
  }
  for (const std::string& line : status.degraded()) pairs.emplace_back("degraded", Printable(line));
  PrintText(RenderPairs(pairs) + "\n");

  Table table({{"TIER"},
               {"STATE"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"FULL", Align::kRight},
               {"PAGES", Align::kRight},
               {"HITS", Align::kRight}});
  for (const v1::TierStatus& tier : status.tiers()) {
    table.Add({TierText(tier.tier()), Printable(tier.state()), FormatBytes(tier.used_bytes()),
               FormatBytes(tier.capacity_bytes()), Share(tier.used_bytes(), tier.capacity_bytes()),
               FormatCount(tier.pages()), FormatCount(tier.hit_pages())});
  }
  PrintText(table.Render());
}

void PrintTiersText(const v1::StatusResponse& status) {
  Table table({{"TIER"},
               {"STATE"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"PAGES", Align::kRight},
               {"HITS", Align::kRight},
               {"READ", Align::kRight},
               {"WRITTEN", Align::kRight},
               {"EVICTED", Align::kRight},
               {"IN FLIGHT", Align::kRight},
               {"WAITING", Align::kRight},
               {"QUARANTINED", Align::kRight}});
  for (const v1::TierStatus& tier : status.tiers()) {
    table.Add({TierText(tier.tier()), Printable(tier.state()), FormatBytes(tier.used_bytes()),
               FormatBytes(tier.capacity_bytes()), FormatCount(tier.pages()),
               FormatCount(tier.hit_pages()), FormatBytes(tier.read_bytes()),
               FormatBytes(tier.write_bytes()), FormatCount(tier.evicted_pages()),
               FormatCount(tier.in_flight()), FormatCount(tier.waiting_moves()),
               FormatCount(tier.quarantined_pages())});
  }
  PrintText(table.Render());
}

}  // namespace

absl::StatusOr<ExitCode> RunStatus(const Context& context) {
  ASSIGN_OR_RETURN(const v1::StatusResponse status, context.daemon.Status());
  if (!context.arguments.json) {
    PrintStatusText(status);
    return ExitCode::kDone;
  }
  json degraded = json::array();
  for (const std::string& line : status.degraded()) degraded.push_back(line);
  json counters = json::object();
  for (const auto& [name, value] : status.counters()) counters[name] = value;
  json drain;  // null unless draining
  if (status.has_drain()) {
    drain = {{"written_blocks", status.drain().written_blocks()},
             {"waiting_blocks", status.drain().waiting_blocks()}};
  }
  PrintJson({{"health", HealthText(status.health())},
             {"drain", drain},
             {"version", status.version()},
             {"commit", status.commit()},
             {"uptime_s", status.uptime_s()},
             {"degraded", degraded},
             {"sessions", status.sessions()},
             {"leases", status.leases()},
             {"reservations", status.reservations()},
             {"blocks", status.blocks()},
             {"namespaces", status.namespaces()},
             {"is_recovering", status.is_recovering()},
             {"incarnation", status.incarnation()},
             {"tiers", TiersJson(status)},
             {"counters", counters}});
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunTiers(const Context& context) {
  ASSIGN_OR_RETURN(const v1::StatusResponse status, context.daemon.Status());
  if (context.arguments.json) {
    PrintJson({{"tiers", TiersJson(status)}});
  } else {
    PrintTiersText(status);
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunConfig(const Context& context) {
  ASSIGN_OR_RETURN(const v1::ConfigResponse config, context.daemon.Config());
  json values = json::array();
  Table table({{"KEY"}, {"VALUE"}, {"SOURCE"}});
  for (const auto& value : config.values()) {
    values.push_back({{"key", value.key()}, {"value", value.value()}, {"source", value.source()}});
    table.Add({Printable(value.key()), Printable(value.value()), Printable(value.source())});
  }
  if (context.arguments.json) {
    PrintJson({{"values", values}});
  } else {
    PrintText(table.Render());
  }
  return ExitCode::kDone;
}

}  // namespace kvstore::kvctl
