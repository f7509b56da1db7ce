// put, get, match.
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/client.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/opened_namespace.h"
#include "tools/kvctl/page_transfer.h"
#include "tools/kvctl/report.h"
#include "tools/kvctl/tier_names.h"
#include "tools/kvctl/token_file.h"

namespace kvstore::kvctl {
namespace {

using nlohmann::json;

// The namespace and the hashes that a command line names.
struct Prefix {
  client::Namespace ns;
  TokenPrefix tokens;
};

absl::StatusOr<Prefix> ReadPrefix(const Context& context) {
  ASSIGN_OR_RETURN(client::Namespace ns, FindNamespace(context.daemon, context.arguments.name));
  ASSIGN_OR_RETURN(TokenPrefix tokens, HashTokenFile(context.arguments.tokens_path, ns.fingerprint,
                                                     ns.spec.block_tokens));
  return Prefix{std::move(ns), std::move(tokens)};
}

// A client with shared memory on a Unix socket; null over TCP, where pages travel inline.
absl::StatusOr<std::unique_ptr<client::Client>> ConnectShared(const Context& context,
                                                              MemoryAccess access) {
  ASSIGN_OR_RETURN(const client::Target target, client::ParseTarget(context.target));
  if (!target.is_unix) return nullptr;
  client::ClientOptions options;
  options.target = context.target;
  options.access = access;
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Create(options));
  RETURN_IF_ERROR(client->WaitConnected(absl::Now() + context.arguments.timeout));
  if (!client->has_shared_memory())
    return absl::UnavailableError("the daemon gave no shared-memory session");
  return client;
}

json ByTierJson(std::span<const uint64_t> by_tier) {
  return {{"gpu", by_tier[0]}, {"dram", by_tier[1]}, {"nvme", by_tier[2]}};
}

std::string ByTierText(std::span<const uint64_t> by_tier) {
  return absl::StrCat("gpu ", FormatCount(by_tier[0]), ", dram ", FormatCount(by_tier[1]),
                      ", nvme ", FormatCount(by_tier[2]));
}

}  // namespace

absl::StatusOr<ExitCode> RunPut(const Context& context) {
  ASSIGN_OR_RETURN(const Prefix prefix, ReadPrefix(context));
  const TransferOptions options{
      .ns = prefix.ns, .hashes = prefix.tokens.hashes, .timeout = context.arguments.timeout};
  if (options.hashes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(context.arguments.tokens_path, " holds ", prefix.tokens.num_tokens,
                     " tokens, less than one block of ", prefix.ns.spec.block_tokens));
  }
  ASSIGN_OR_RETURN(PageSource source,
                   PageSource::Open(context.arguments.data_path,
                                    options.hashes.size() * prefix.ns.spec.shape.page_bytes()));
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client,
                   ConnectShared(context, MemoryAccess::kReadWrite));
  ASSIGN_OR_RETURN(const PutReport report, client != nullptr
                                               ? PutShared(*client, options, source)
                                               : PutInline(context.daemon, options, source));
  if (context.arguments.json) {
    PrintJson({{"blocks", options.hashes.size()},
               {"stored_blocks", report.stored_blocks},
               {"existing_blocks", report.existing_blocks},
               {"bytes", report.stored_blocks * prefix.ns.spec.shape.page_bytes()},
               {"through", client != nullptr ? "shared_memory" : "inline"}});
  } else {
    PrintText(RenderPairs(
        {{"blocks", FormatCount(options.hashes.size())},
         {"stored",
          absl::StrCat(FormatCount(report.stored_blocks), " (",
                       FormatBytes(report.stored_blocks * prefix.ns.spec.shape.page_bytes()), ")")},
         {"existing", FormatCount(report.existing_blocks)}}));
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunGet(const Context& context) {
  ASSIGN_OR_RETURN(const Prefix prefix, ReadPrefix(context));
  const TransferOptions options{
      .ns = prefix.ns, .hashes = prefix.tokens.hashes, .timeout = context.arguments.timeout};
  ASSIGN_OR_RETURN(PageSink sink, PageSink::Create(context.arguments.out_path));
  GetReport report;
  if (!options.hashes.empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client,
                     ConnectShared(context, MemoryAccess::kReadOnly));
    ASSIGN_OR_RETURN(report, client != nullptr ? GetShared(*client, options, sink)
                                               : GetInline(context.daemon, options, sink));
  }
  // Nothing matched: the file stays as it was.
  if (report.delivered_blocks > 0) RETURN_IF_ERROR(sink.Finish());
  const uint64_t bytes = report.delivered_blocks * prefix.ns.spec.shape.page_bytes();
  const uint64_t tokens = report.delivered_blocks * prefix.ns.spec.block_tokens;
  const uint64_t lost_blocks = report.found_blocks - report.delivered_blocks;
  if (context.arguments.json) {
    json out = {{"matched_blocks", report.delivered_blocks},       {"matched_tokens", tokens},
                {"by_tier", ByTierJson(report.by_tier)},           {"bytes", bytes},
                {"page_bytes", prefix.ns.spec.shape.page_bytes()}, {"lost_blocks", lost_blocks}};
    if (lost_blocks > 0) out["lost_reason"] = report.lost_reason;
    PrintJson(out);
  } else {
    std::vector<std::pair<std::string, std::string>> pairs = {
        {"matched", absl::StrCat(FormatCount(report.delivered_blocks), " of ",
                                 FormatCount(options.hashes.size()), " blocks, ",
                                 FormatCount(tokens), " tokens")},
        {"found in", ByTierText(report.by_tier)},
        {"bytes", FormatBytes(bytes)}};
    if (lost_blocks > 0) {
      pairs.emplace_back("lost", absl::StrCat(FormatCount(lost_blocks),
                                              " blocks: ", Printable(report.lost_reason)));
    }
    PrintText(RenderPairs(pairs));
  }
  return report.delivered_blocks > 0 ? ExitCode::kDone : ExitCode::kNothingMatched;
}

absl::StatusOr<ExitCode> RunMatch(const Context& context) {
  ASSIGN_OR_RETURN(const Prefix prefix, ReadPrefix(context));
  v1::MatchRequest request;
  FillRequest(prefix.ns, prefix.tokens.hashes, request);
  v1::MatchResponse match;
  if (!prefix.tokens.hashes.empty()) {
    ASSIGN_OR_RETURN(match, context.daemon.Match(request));
  }
  std::array<uint64_t, client::kNumTiers> by_tier{};
  client::ReadTierCounts(match.by_tier(), &by_tier);
  const uint64_t bytes = match.matched_blocks() * prefix.ns.spec.shape.page_bytes();
  if (context.arguments.json) {
    PrintJson({{"matched_blocks", match.matched_blocks()},
               {"matched_tokens", match.matched_tokens()},
               {"by_tier", ByTierJson(by_tier)},
               {"bytes", bytes},
               {"page_bytes", prefix.ns.spec.shape.page_bytes()}});
  } else {
    PrintText(
        RenderPairs({{"matched", absl::StrCat(FormatCount(match.matched_blocks()), " of ",
                                              FormatCount(prefix.tokens.hashes.size()), " blocks, ",
                                              FormatCount(match.matched_tokens()), " tokens")},
                     {"found in", ByTierText(by_tier)},
                     {"bytes", FormatBytes(bytes)}}));
  }
  return match.matched_blocks() > 0 ? ExitCode::kDone : ExitCode::kNothingMatched;
}

}  // namespace kvstore::kvctl
