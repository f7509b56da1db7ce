// Token ids from a text file, piece by piece: a file of any length is read in constant memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"

namespace kvstore::kvctl {

// Ids (0 to 4294967295, decimal) separated by whitespace. Confined to one thread.
class TokenFile {
 public:
  // "-" is standard input. Errors: InvalidArgument, the file cannot be opened.
  static absl::StatusOr<TokenFile> Open(const std::string& path);
  TokenFile(TokenFile&& other) noexcept;
  TokenFile& operator=(TokenFile&&) = delete;
  ~TokenFile();

  // Reads the next ids into `tokens`, as many as there are and fit; fewer only at the end of the
  // file. Errors: InvalidArgument naming file, line and column of what is not a token id, or the
  // read error.
  absl::StatusOr<size_t> Read(std::span<uint32_t> tokens);

 private:
  TokenFile(int fd, std::string name);
  // The next byte; -1 at the end, -2 on a read error (`error_` says which).
  int Next();
  // The rest of the word that begins with `first`.
  absl::StatusOr<uint32_t> ReadWord(int first);

  int fd_;
  std::string name_;  // for messages
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
  uint64_t line_ = 1, column_ = 0;  // of the byte that Next() gave last
  int error_ = 0;
};

// The block hashes of the whole blocks in a token file.
struct TokenPrefix {
  std::vector<BlockHash> hashes;
  uint64_t num_tokens = 0;  // the tail that fills no block included
};
// Errors: InvalidArgument as above, or more than blocks_max whole blocks.
absl::StatusOr<TokenPrefix> HashTokenFile(const std::string& path, const Fingerprint& fingerprint,
                                          uint32_t block_tokens);
// One call to the daemon takes no more (proto/kvstore/v1/kvstore.proto).
inline constexpr size_t kBlocksMax = 65536;

}  // namespace kvstore::kvctl
