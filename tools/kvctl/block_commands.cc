// ls, evict, verify.
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
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

// Enough to tell blocks apart; --json has all digits.
constexpr size_t kDigitsShown = 16;

json BlockJson(const v1::ListResponse::Block& block) {
  json tiers = json::array();
  for (const int tier : block.tiers()) tiers.push_back(TierText(static_cast<v1::Tier>(tier)));
  return {{"hash", absl::BytesToHexString(block.hash())},
          {"parent",
           block.parent().empty() ? json(nullptr) : json(absl::BytesToHexString(block.parent()))},
          {"block_index", block.block_index()},
          {"tiers", tiers},
          {"bytes", block.bytes()},
          {"age_s", block.age_s()},
          {"hits", block.hits()},
          {"pins", block.leases()}};
}

void AddBlock(Table& table, const v1::ListResponse::Block& block) {
  std::string tiers;
  for (const int tier : block.tiers()) {
    absl::StrAppend(&tiers, tiers.empty() ? "" : ",", TierText(static_cast<v1::Tier>(tier)));
  }
  table.Add({absl::StrCat(block.block_index()),
             absl::BytesToHexString(block.hash()).substr(0, kDigitsShown),
             block.parent().empty()
                 ? "-"
                 : absl::BytesToHexString(block.parent()).substr(0, kDigitsShown),
             tiers, FormatBytes(block.bytes()), FormatSeconds(block.age_s()),
             FormatCount(block.hits()), FormatCount(block.leases())});
}

}  // namespace

absl::StatusOr<ExitCode> RunList(const Context& context) {
  v1::ListRequest request;
  request.set_namespace_(context.arguments.name);
  request.set_tier(TierOf(context.arguments.tier));
  request.set_limit(context.arguments.limit);
  ASSIGN_OR_RETURN(const v1::ListResponse response, context.daemon.List(request));
  json blocks = json::array();
  Table table({{"BLOCK", Align::kRight},
               {"HASH"},
               {"PARENT"},
               {"TIERS"},
               {"SIZE", Align::kRight},
               {"AGE", Align::kRight},
               {"HITS", Align::kRight},
               {"PINS", Align::kRight}});
  for (const auto& block : response.blocks()) {
    blocks.push_back(BlockJson(block));
    AddBlock(table, block);
  }
  if (context.arguments.json) {
    PrintJson({{"blocks", blocks}});
  } else {
    PrintText(table.Render());
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunEvict(const Context& context) {
  v1::EvictRequest request;
  request.set_namespace_(context.arguments.name);
  request.set_tier(TierOf(context.arguments.tier));
  ASSIGN_OR_RETURN(const v1::EvictResponse response, context.daemon.Evict(request));
  if (context.arguments.json) {
    PrintJson({{"blocks", response.blocks()}, {"skipped_blocks", response.skipped_blocks()}});
  } else {
    PrintText(absl::StrCat("evicted ", FormatCount(response.blocks()), " blocks from ",
                           context.arguments.tier, "; ", FormatCount(response.skipped_blocks()),
                           " stay: leased, moving, or the last copy\n"));
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunVerify(const Context& context) {
  v1::VerifyRequest request;
  request.set_tier(TierOf(context.arguments.tier));
  request.set_repair(context.arguments.repair);
  const bool shows_progress = !context.arguments.json && isatty(STDERR_FILENO) != 0;
  const auto on_progress = [shows_progress](const v1::VerifyResponse& message) {
    if (!shows_progress) return;
    if (message.is_last()) {
      std::fprintf(stderr, "\r%40s\r", "");
    } else {
      std::fprintf(stderr, "\rchecked %s pages", FormatCount(message.checked()).c_str());
    }
  };
  ASSIGN_OR_RETURN(const v1::VerifyResponse result, context.daemon.Verify(request, on_progress));
  if (context.arguments.json) {
    PrintJson(
        {{"checked", result.checked()}, {"bad", result.bad()}, {"repaired", result.repaired()}});
  } else {
    PrintText(RenderPairs({{"checked", absl::StrCat(FormatCount(result.checked()), " pages")},
                           {"bad", absl::StrCat(FormatCount(result.bad()),
                                                result.bad() > 0 ? " pages, dropped" : " pages")},
                           {"repaired", absl::StrCat(FormatCount(result.repaired()), " pages")}}));
  }
  return ExitCode::kDone;
}

}  // namespace kvstore::kvctl
