#include "tools/kvctl/page_transfer.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvctl/opened_namespace.h"

namespace kvstore::kvctl {
namespace {

using client::Reservation;

constexpr uint64_t kBatchBytes =
    32 << 20;  // reserved at a time: enough to hide the calls, little to hold from others
constexpr size_t kBatchBlocksMax = 1024;
constexpr absl::Duration kNoSpaceRetry = absl::Milliseconds(20);

size_t BatchBlocks(const client::Namespace& ns) {
  return std::clamp<size_t>(kBatchBytes / ns.spec.shape.page_bytes(), 1, kBatchBlocksMax);
}

// One put through shared memory.
class SharedPut {
 public:
  SharedPut(client::Client& client, const TransferOptions& options, PageSource& source)
      : client_(client),
        options_(options),
        source_(source),
        skipped_page_(options.ns.spec.shape.page_bytes()) {}

  absl::StatusOr<PutReport> Run() {
    absl::Time give_up = absl::Now() + options_.timeout;
    while (next_ < options_.hashes.size()) {
      const size_t before = next_;
      RETURN_IF_ERROR(PutBatch());
      if (next_ > before) {
        give_up = absl::Now() + options_.timeout;
      } else if (absl::Now() >= give_up) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "the daemon has no free page for block ", next_, " of ", options_.hashes.size(),
            " (stored ", report_.stored_blocks, ", existing ", report_.existing_blocks, ")"));
      } else {
        absl::SleepFor(kNoSpaceRetry);
      }
    }
    RETURN_IF_ERROR(source_.ExpectEnd());
    return report_;
  }

 private:
  absl::Time Deadline() const { return absl::Now() + options_.timeout; }

  // Stores the next blocks, up to the first for which there is no space.
  absl::Status PutBatch() {
    client::ReserveRequest request{
        .parent = std::nullopt,
        .first_block_index = static_cast<uint32_t>(next_),
        .hashes = options_.hashes.subspan(
            next_, std::min(BatchBlocks(options_.ns), options_.hashes.size() - next_)),
        .tier = client::Tier::kDram};
    if (next_ > 0) request.parent = options_.hashes[next_ - 1];
    ASSIGN_OR_RETURN(Reservation reservation, client_.Reserve(options_.ns, request, Deadline()));
    std::vector<uint32_t> filled;
    size_t block = 0;
    for (; block < reservation.num_blocks() &&
           reservation.state(block) != Reservation::BlockState::kNoSpace;
         ++block) {
      if (reservation.state(block) == Reservation::BlockState::kReserved) {
        RETURN_IF_ERROR(source_.Read(std::span(reservation.slot(block), skipped_page_.size())));
        reservation.Seal(block);
        filled.push_back(static_cast<uint32_t>(block));
      } else {
        RETURN_IF_ERROR(source_.Read(skipped_page_));
      }
    }
    if (!filled.empty()) RETURN_IF_ERROR(reservation.Commit(filled, Deadline()));
    report_.stored_blocks += filled.size();
    report_.existing_blocks += block - filled.size();
    next_ += block;
    return absl::OkStatus();
  }

  client::Client& client_;
  const TransferOptions& options_;
  PageSource& source_;
  std::vector<std::byte> skipped_page_;
  PutReport report_;
  size_t next_ = 0;
};

// A lost block shortens the prefix; anything else is a failure of the command.
bool IsLost(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsUnavailable(status) || absl::IsAborted(status);
}

}  // namespace

absl::StatusOr<PutReport> PutShared(client::Client& client, const TransferOptions& options,
                                    PageSource& source) {
  return SharedPut(client, options, source).Run();
}

absl::StatusOr<PutReport> PutInline(DaemonCalls& daemon, const TransferOptions& options,
                                    PageSource& source) {
  v1::PutRequest::Header header;
  FillRequest(options.ns, options.hashes, header);
  const uint64_t total_bytes = options.hashes.size() * options.ns.spec.shape.page_bytes();
  ASSIGN_OR_RETURN(const v1::PutResponse response,
                   daemon.Put(header, total_bytes,
                              [&](std::span<std::byte> piece) { return source.Read(piece); }));
  RETURN_IF_ERROR(source.ExpectEnd());
  const PutReport report{.stored_blocks = response.stored_blocks(),
                         .existing_blocks = response.existing_blocks()};
  if (report.stored_blocks + report.existing_blocks < options.hashes.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the daemon had no space for all ", options.hashes.size(), " blocks (stored ",
                     report.stored_blocks, ", existing ", report.existing_blocks, ")"));
  }
  return report;
}

absl::StatusOr<GetReport> GetShared(client::Client& client, const TransferOptions& options,
                                    PageSink& sink) {
  const auto deadline = [&options] { return absl::Now() + options.timeout; };
  ASSIGN_OR_RETURN(client::Lease lease, client.Acquire(options.ns, options.hashes,
                                                       client::HottestTier::kDram, deadline()));
  GetReport report;
  report.found_blocks = lease.matched_blocks();
  std::vector<std::byte> page(options.ns.spec.shape.page_bytes());
  for (uint32_t block = 0; block < report.found_blocks; ++block) {
    const absl::StatusOr<client::PageView> view = lease.WaitReady(block, deadline());
    absl::Status status = view.status();
    if (status.ok()) status = lease.CopyPage(block, page.data(), deadline());
    if (IsLost(status)) {
      report.lost_reason = std::string(status.message().data(), status.message().size());
      return report;
    }
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(sink.Write(page));
    ++report.delivered_blocks;
    ++report.by_tier[static_cast<size_t>(view->found_in)];
  }
  return report;
}

absl::StatusOr<GetReport> GetInline(DaemonCalls& daemon, const TransferOptions& options,
                                    PageSink& sink) {
  v1::GetRequest request;
  FillRequest(options.ns, options.hashes, request);
  GetReport report;
  uint64_t received_bytes = 0;
  bool is_whole = false;
  const auto on_message = [&](const v1::GetResponse& message) -> absl::Status {
    if (message.has_header()) {
      report.found_blocks = message.header().matched_blocks();
      client::ReadTierCounts(message.header().by_tier(), &report.by_tier);
    } else if (message.part_case() == v1::GetResponse::kDeliveredBlocks) {
      report.delivered_blocks = message.delivered_blocks();
      is_whole = true;
    } else {
      received_bytes += message.data().size();
      return sink.Write(std::as_bytes(std::span(message.data())));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(daemon.Get(request, on_message));
  if (!is_whole || received_bytes != report.delivered_blocks * options.ns.spec.shape.page_bytes()) {
    return absl::DataLossError(absl::StrCat("the daemon sent ", received_bytes, " bytes for ",
                                            report.delivered_blocks, " pages"));
  }
  if (report.delivered_blocks < report.found_blocks)
    report.lost_reason = "lost on its way; the daemon counted why";
  return report;
}

}  // namespace kvstore::kvctl
