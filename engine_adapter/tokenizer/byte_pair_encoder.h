// Byte pair encoding of one piece of text: the bytes become tokens, and the pair with the lowest
// merge rank (leftmost first) is joined until no pair has a merge.
//
// Threads: immutable after Create(). Cost: O(n log n) for a piece of n bytes.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvstore::engine {

class BytePairEncoder {
 public:
  using TokenPair = std::pair<uint32_t, uint32_t>;

  // What a merge of the pair gives; a lower rank goes first.
  struct Merge {
    uint32_t rank;
    uint32_t token;
  };

  // `id_of_bytes` names each token by the bytes it stands for. With `whole_pieces_first`, a piece
  // that is a token is that token, whatever the merges say ("ignore_merges" in tokenizer.json).
  struct Vocabulary {
    absl::flat_hash_map<std::string, uint32_t> id_of_bytes;
    absl::flat_hash_map<TokenPair, Merge> merges;
    bool whole_pieces_first = false;
  };

  explicit BytePairEncoder(Vocabulary vocabulary);

  // Appends the tokens of `piece`. A byte that no token stands for is left out, as the reference
  // does (SmolLM2 lacks 21: six control characters, and bytes that valid text of assigned
  // characters has not).
  void Encode(std::string_view piece, std::vector<uint32_t>& tokens) const;

  // The token that stands for exactly these bytes.
  std::optional<uint32_t> TokenOfBytes(std::string_view bytes) const;

 private:
  Vocabulary vocabulary_;
  std::array<int64_t, 256> token_of_byte_;  // -1: none
};

}  // namespace kvstore::engine
