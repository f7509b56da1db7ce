#include "tools/kvctl/token_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::kvctl {
namespace {

constexpr size_t kBufferBytes = 64 << 10;
constexpr size_t kWordShownMax = 24;
constexpr int kEnd = -1;
constexpr int kReadError = -2;

bool IsSpace(int c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

}  // namespace

TokenFile::TokenFile(int fd, std::string name)
    : fd_(fd), name_(std::move(name)), buffer_(kBufferBytes) {}

TokenFile::TokenFile(TokenFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      name_(std::move(other.name_)),
      buffer_(std::move(other.buffer_)),
      begin_(other.begin_),
      end_(other.end_),
      line_(other.line_),
      column_(other.column_),
      error_(other.error_) {}

TokenFile::~TokenFile() {
  if (fd_ > STDIN_FILENO) close(fd_);
}

absl::StatusOr<TokenFile> TokenFile::Open(const std::string& path) {
  if (path == "-") return TokenFile(STDIN_FILENO, "standard input");
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("token file ", path, ": ", std::strerror(errno)));
  }
  return TokenFile(fd, path);
}

int TokenFile::Next() {
  if (begin_ == end_) {
    ssize_t got;
    do {
      got = read(fd_, buffer_.data(), buffer_.size());
    } while (got < 0 && errno == EINTR);
    if (got < 0) error_ = errno;
    if (got <= 0) return got < 0 ? kReadError : kEnd;
    begin_ = 0;
    end_ = static_cast<size_t>(got);
  }
  const int c = static_cast<unsigned char>(buffer_[begin_++]);
  ++column_;
  return c;
}

absl::StatusOr<uint32_t> TokenFile::ReadWord(int first) {
  const uint64_t column = column_;
  uint64_t value = 0;
  bool is_valid = true;
  std::string shown;
  int c = first;
  for (; c >= 0 && !IsSpace(c); c = Next()) {
    if (shown.size() < kWordShownMax) shown += static_cast<char>(c);
    is_valid = is_valid && c >= '0' && c <= '9';
    if (is_valid) value = value * 10 + static_cast<uint64_t>(c - '0');
    is_valid = is_valid && value <= std::numeric_limits<uint32_t>::max();
    if (!is_valid && shown.size() == kWordShownMax) break;
  }
  if (!is_valid) {
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ":", line_, ":", column, ": \"", shown,
                     "\" is not a token id; valid are 0 to 4294967295, separated by whitespace"));
  }
  if (c == '\n') {
    ++line_;
    column_ = 0;
  }
  return static_cast<uint32_t>(value);
}

absl::StatusOr<size_t> TokenFile::Read(std::span<uint32_t> tokens) {
  size_t count = 0;
  while (count < tokens.size()) {
    const int c = Next();
    if (c == kEnd && error_ == 0) break;
    if (c >= 0 && IsSpace(c)) {
      if (c == '\n') {
        ++line_;
        column_ = 0;
      }
      continue;
    }
    if (c >= 0) {
      ASSIGN_OR_RETURN(tokens[count], ReadWord(c));
      ++count;
    }
    if (error_ != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot read ", name_, ": ", std::strerror(error_)));
    }
  }
  return count;
}

absl::StatusOr<TokenPrefix> HashTokenFile(const std::string& path, const Fingerprint& fingerprint,
                                          uint32_t block_tokens) {
  ASSIGN_OR_RETURN(TokenFile file, TokenFile::Open(path));
  TokenPrefix prefix;
  std::vector<uint32_t> block(block_tokens);
  BlockHash parent = RootHash(fingerprint);
  while (true) {
    ASSIGN_OR_RETURN(const size_t count, file.Read(block));
    prefix.num_tokens += count;
    if (count < block.size()) return prefix;
    if (prefix.hashes.size() == kBlocksMax) {
      return absl::InvalidArgumentError(absl::StrCat(path, " holds more than ", kBlocksMax,
                                                     " blocks of ", block_tokens,
                                                     " tokens, the most that one call takes"));
    }
    parent = HashBlock(parent, block);
    prefix.hashes.push_back(parent);
  }
}

}  // namespace kvstore::kvctl
