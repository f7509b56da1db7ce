// Where the pages of an inline Get go, with the checks that a daemon's stream must pass.
//
// Externally synchronised. Nothing is written outside of `pages`, whatever the stream says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvstore/client/client.h"
#include "kvstore/client/wire.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::client {

class PageSink {
 public:
  // `pages` has room for `blocks` pages of `page_bytes`.
  PageSink(std::span<std::byte> pages, uint64_t page_bytes, size_t blocks)
      : pages_(pages), page_bytes_(page_bytes), blocks_(blocks) {}

  // Takes the next message. Errors: Unavailable, it does not fit what came before: the stream is to
  // be given up.
  absl::Status Take(const v1::GetResponse& message) {
    if (message.has_header()) return TakeHeader(message.header());
    if (!has_header_) return Broken("data before the header");
    if (message.part_case() == v1::GetResponse::kDeliveredBlocks)
      return TakeEnd(message.delivered_blocks());
    const std::string& data = message.data();
    if (is_ended_ || data.size() > uint64_t{result_.match.matched_blocks} * page_bytes_ - received_)
      return Broken("more data than it announced");
    std::memcpy(pages_.data() + received_, data.data(), data.size());
    received_ += data.size();
    return absl::OkStatus();
  }
  // After the last message. Errors: Unavailable, the stream had no end.
  absl::StatusOr<GetResult> Finish() const {
    if (!is_ended_) return Broken("no end");
    return result_;
  }

 private:
  static absl::Status Broken(const char* why) {
    return absl::UnavailableError(absl::StrCat("the daemon's Get stream is broken: ", why));
  }

  absl::Status TakeHeader(const v1::GetResponse::Header& header) {
    if (has_header_) return Broken("two headers");
    if (header.page_bytes() != page_bytes_ || header.matched_blocks() > blocks_)
      return Broken("a header that does not fit the request");
    has_header_ = true;
    result_.match.matched_blocks = header.matched_blocks();
    result_.match.matched_tokens = header.matched_tokens();
    result_.match.page_bytes = header.page_bytes();
    ReadTierCounts(header.by_tier(), &result_.match.by_tier);
    return absl::OkStatus();
  }
  absl::Status TakeEnd(uint32_t delivered) {
    if (is_ended_ || uint64_t{delivered} * page_bytes_ != received_)
      return Broken("its end does not fit its data");
    is_ended_ = true;
    result_.delivered_blocks = delivered;
    return absl::OkStatus();
  }

  const std::span<std::byte> pages_;
  const uint64_t page_bytes_;
  const size_t blocks_;
  GetResult result_;
  uint64_t received_ = 0;
  bool has_header_ = false;
  bool is_ended_ = false;
};

}  // namespace kvstore::client
