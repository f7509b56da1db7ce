// A tenant asks for another one's blocks: it is told the same, byte for byte, and as quickly, as
// for what is not there.
//
// Present and absent blocks are asked for in random order, one packet there and one back on the
// memory socket, which is the fastest and steadiest way in. The times of the two kinds are compared
// by the Kolmogorov-Smirnov distance D of their distributions: whoever sees the time of one look-up
// guesses its kind right with a probability of at most (1 + D) / 2.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kvstore/base/acquire_packet.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/raw_socket.h"

namespace kvstore::testing {
namespace {

constexpr size_t kBlocks = 8;
// 51 of 100 guesses.
constexpr double kDistanceMax = 0.02;

size_t NumLookUps() { return getenv("KVSTORE_STRICT") != nullptr ? 1'000'000 : 100'000; }

double Distance(std::vector<int64_t> a, std::vector<int64_t> b) {
  std::ranges::sort(a);
  std::ranges::sort(b);
  double distance = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const int64_t at = std::min(a[i], b[j]);
    while (i < a.size() && a[i] == at) ++i;
    while (j < b.size() && b[j] == at) ++j;
    distance = std::max(distance, std::abs(static_cast<double>(i) / static_cast<double>(a.size()) -
                                           static_cast<double>(j) / static_cast<double>(b.size())));
  }
  return distance;
}

int64_t Median(std::vector<int64_t> times) {
  std::ranges::nth_element(times, times.begin() + static_cast<ptrdiff_t>(times.size() / 2));
  return times[times.size() / 2];
}

class CrossTenant : public ::testing::Test {
 protected:
  void SetUp() override {
    daemon_.Start();
    victim_ = daemon_.Connect();
    const absl::StatusOr<client::Namespace> ns = victim_->Open("theirs", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    present_ = ns_.Hash(Tokens(ns_.spec, kBlocks, 1));
    absent_ = ns_.Hash(Tokens(ns_.spec, kBlocks, 2));
    ASSERT_TRUE(victim_->Put(ns_, present_, PagesBytes(ns_.spec, present_)).ok());
    socket_ = ConnectRaw(daemon_.socket_path() + ".mem", SOCK_SEQPACKET);
    MemoryRequest hello{.kind = MemoryRequestKind::kHello, .access = MemoryAccess::kReadOnly};
    std::strcpy(hello.tenant.data(), "stranger");
    ASSERT_TRUE(SendRaw(socket_, &hello, sizeof hello));
    MemoryReply reply;
    ASSERT_EQ(recv(socket_.get(), &reply, sizeof reply, 0), static_cast<ssize_t>(sizeof reply));
    ASSERT_EQ(reply.code, MemoryReplyCode::kOk);
  }
  // Asks for the two in random order; fails at the first answer that tells them apart.
  void Compare(const std::vector<std::byte>& theirs, const std::vector<std::byte>& nobodys) {
    const std::vector<std::byte> not_there = Ask(nobodys);
    std::mt19937_64 random(12345);
    std::vector<int64_t> times[2];
    for (size_t i = 0; i < NumLookUps(); ++i) {
      const size_t which = random() & 1;
      const absl::Time start = absl::Now();
      const std::vector<std::byte>& answer = Ask(which == 0 ? theirs : nobodys);
      times[which].push_back(absl::ToInt64Nanoseconds(absl::Now() - start));
      ASSERT_TRUE(answer == not_there) << "look-up " << i << " tells them apart";
    }
    const double distance = Distance(times[0], times[1]);
    std::printf("%zu look-ups: medians %ld and %ld ns, distance %.4f\n", NumLookUps(),
                Median(times[0]), Median(times[1]), distance);
    EXPECT_LE(distance, kDistanceMax);
  }
  const std::vector<std::byte>& Ask(const std::vector<std::byte>& packet) {
    EXPECT_TRUE(SendRaw(socket_, packet.data(), packet.size()));
    answer_.resize(kAcquireReplyBytesMax);
    const ssize_t got = recv(socket_.get(), answer_.data(), answer_.size(), 0);
    answer_.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
    return answer_;
  }

  DaemonProcess daemon_;
  std::unique_ptr<client::Client> victim_;
  client::Namespace ns_;
  std::vector<BlockHash> present_, absent_;
  UniqueFd socket_;
  std::vector<std::byte> answer_;
};

TEST_F(CrossTenant, BlocksThatAreThereLookLikeBlocksThatAreNot) {
  Compare(EncodeAcquireRequest(ns_.fingerprint, true, present_),
          EncodeAcquireRequest(ns_.fingerprint, true, absent_));
  EXPECT_EQ(daemon_.Status().leases(), 0u);
}

TEST_F(CrossTenant, ANamespaceThatIsThereLooksLikeOneThatIsNot) {
  Fingerprint unknown = ns_.fingerprint;
  unknown.bytes[0] ^= 1;
  Compare(EncodeAcquireRequest(ns_.fingerprint, true, present_),
          EncodeAcquireRequest(unknown, true, present_));
}

}  // namespace
}  // namespace kvstore::testing
