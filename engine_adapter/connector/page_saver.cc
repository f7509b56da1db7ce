#include "engine_adapter/connector/page_saver.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
std::string FailureReason(const absl::Status& status) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(status.code()));
}

PageSaver::PageSaver(StoreConnection& connection, client::Namespace ns, PageMover& mover)
    : connection_(connection), ns_(std::move(ns)), mover_(mover), thread_([this] { Run(); }) {}

void PageSaver::Queue(Page page) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(page));
}

void PageSaver::Finish(absl::Time deadline) {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    is_closing_ = true;
    save_by_ = deadline;
  }
  thread_.join();
}

bool PageSaver::HasWork() const { return is_closing_ || !queue_.empty(); }

void PageSaver::Run() {
  for (;;) {
    std::vector<Page> run;
    absl::Time save_by;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &PageSaver::HasWork));
      if (queue_.empty()) return;
      save_by = save_by_;
      do {
        run.push_back(std::move(queue_.front()));
        queue_.pop_front();
      } while (!queue_.empty() && run.size() < kRunPagesMax &&
               queue_.front().block_index == run.back().block_index + 1);
    }
    const absl::Status saved =
        absl::Now() < save_by ? SaveRun(run) : absl::DeadlineExceededError("no time to save");
    if (!saved.ok()) failures_[FailureReason(saved)] += static_cast<int64_t>(run.size());
  }
}

absl::Status PageSaver::SaveRun(std::span<const Page> run) {
  std::vector<BlockHash> hashes;
  for (const Page& page : run) hashes.push_back(page.hash);
  ASSIGN_OR_RETURN(client::Reservation reservation, Reserve(run, hashes));
  std::vector<FilledPage> filled;
  std::vector<uint32_t> positions;
  for (uint32_t i = 0; i < run.size(); ++i) {
    if (reservation.state(i) == client::Reservation::BlockState::kReserved) {
      filled.push_back({.position = i, .hash = run[i].hash, .page = run[i].page});
      positions.push_back(i);
    } else if (reservation.state(i) == client::Reservation::BlockState::kNoSpace) {
      ++failures_["no_space"];
    }
  }
  if (filled.empty()) return absl::OkStatus();
  absl::Status saved = mover_.Save(ns_, filled, reservation);
  if (saved.ok()) saved = reservation.Commit(positions, absl::InfiniteFuture());
  if (!saved.ok()) failures_[FailureReason(saved)] += static_cast<int64_t>(filled.size());
  return absl::OkStatus();
}

absl::StatusOr<client::Reservation> PageSaver::Reserve(std::span<const Page> run,
                                                       std::span<const BlockHash> hashes) {
  client::ReserveRequest request{
      .parent = run.front().parent,
      .first_block_index = static_cast<uint32_t>(run.front().block_index),
      .hashes = hashes,
      .tier = tier_};
  absl::StatusOr<client::Reservation> reservation = connection_.client().Reserve(ns_, request);
  if (tier_ == client::Tier::kGpu && absl::IsInvalidArgument(reservation.status())) {
    tier_ = request.tier = client::Tier::kDram;  // the daemon has no GPU tier
    reservation = connection_.client().Reserve(ns_, request);
  }
  if (!reservation.ok()) connection_.Suspect();
  return reservation;
}

}  // namespace kvstore::engine
