#include "tests/soak/trace_load.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(2);
// The promise is 250 ms; 500 more are for a test machine on which everything runs at once.
constexpr absl::Duration kGrace = absl::Milliseconds(750);
constexpr absl::Duration kPauseAfterFailure = absl::Milliseconds(5);

NamespaceSpec TraceSpec() {
  NamespaceSpec spec = SmallSpec(4, 8192);
  spec.model = "soak";
  spec.block_tokens = 1;  // a trace's id stands for a block
  return spec;
}

}  // namespace

Trace ReadTrace(const std::string& path) {
  Trace trace;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; words >> id;) ids.push_back(id);
    if (!ids.empty()) trace.push_back(std::move(ids));
  }
  return trace;
}

TraceLoad::TraceLoad(const Options& options, const Trace& trace)
    : trace_(trace),
      client_(*client::Client::Create({.target = options.target, .tenant = options.tenant})),
      thread_([this, seed = options.seed] { Run(seed); }) {}

TraceLoad::~TraceLoad() { Stop(); }

void TraceLoad::Stop() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

LoadCounts TraceLoad::counts() const {
  return {.requests = requests_,
          .matched_blocks = matched_blocks_,
          .checked_pages = checked_pages_,
          .stored_blocks = stored_blocks_,
          .failed_calls = failed_calls_,
          .wrong_pages = wrong_pages_,
          .overruns = overruns_};
}

void TraceLoad::Run(uint64_t seed) {
  for (size_t i = seed % trace_.size(); !stop_; i = (i + 1) % trace_.size()) Replay(trace_[i]);
}

template <typename Call>
auto TraceLoad::Timed(Call call) {
  const absl::Time deadline = absl::Now() + kDeadline;
  auto result = call(deadline);
  if (absl::Now() > deadline + kGrace) ++overruns_;
  if (!result.ok()) {
    ++failed_calls_;
    absl::SleepFor(kPauseAfterFailure);
  }
  return result;
}

void TraceLoad::Replay(const std::vector<uint32_t>& ids) {
  ++requests_;
  const NamespaceSpec spec = TraceSpec();
  const auto ns = Timed([&](absl::Time by) { return client_->Open("soak", spec, by); });
  if (!ns.ok()) return;
  const std::vector<BlockHash> hashes = ns->Hash(ids);
  std::vector<std::byte> pages(hashes.size() * spec.shape.page_bytes());
  const auto got = Timed([&](absl::Time by) { return client_->Get(*ns, hashes, pages, by); });
  uint32_t have = 0;
  if (got.ok()) {
    have = got->delivered_blocks;
    matched_blocks_ += got->match.matched_blocks;
    Check(std::span(hashes).first(have), pages);
  }
  if (have == hashes.size()) return;
  const auto put =
      Timed([&](absl::Time by) { return client_->Put(*ns, hashes, PagesBytes(spec, hashes), by); });
  if (put.ok()) stored_blocks_ += put->stored_blocks;
}

void TraceLoad::Check(std::span<const BlockHash> hashes, const std::vector<std::byte>& pages) {
  const NamespaceSpec spec = TraceSpec();
  const size_t page_bytes = spec.shape.page_bytes();
  for (size_t i = 0; i < hashes.size(); ++i) {
    const std::vector<std::byte> expected = PageBytes(spec, hashes[i]);
    wrong_pages_ += !std::equal(expected.begin(), expected.end(),
                                pages.begin() + static_cast<ptrdiff_t>(i * page_bytes));
  }
  checked_pages_ += hashes.size();
}

}  // namespace kvstore::testing
