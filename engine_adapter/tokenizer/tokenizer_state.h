// What a Tokenizer knows; filled by tokenizer_reader.cc, used by tokenizer.cc. Internal to this
// folder.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine_adapter/tokenizer/byte_pair_encoder.h"
#include "engine_adapter/tokenizer/pattern.h"
#include "engine_adapter/tokenizer/tokenizer.h"

namespace kvstore::engine {

// Finds added tokens in a text: the leftmost, and there the longest.
class AddedTokenFinder {
 public:
  void Add(std::string content, uint32_t token);

  struct Piece {
    std::string_view text;
    std::optional<uint32_t> token;  // nullopt: ordinary text
  };

  // The pieces cover `text`; none is empty.
  std::vector<Piece> Split(std::string_view text) const;

 private:
  struct Known {
    std::string content;
    uint32_t token;
  };
  std::array<std::vector<Known>, 256> by_first_byte_;  // each with the longest first
};

struct Tokenizer::State {
  struct Token {
    std::string bytes;
    bool exists = false;
    bool is_special = false;
  };

  std::vector<Token> tokens;          // by id
  AddedTokenFinder added_raw;         // found before normalization
  AddedTokenFinder added_normalized;  // found after it
  absl::flat_hash_map<std::string, uint32_t> added_ids;
  bool normalizes_nfc = false;
  std::vector<Pattern> splits;  // applied one after another, each to every piece of the one before
  std::optional<BytePairEncoder> encoder;
  std::vector<uint32_t> before;  // special tokens that the post-processor puts around the text
  std::vector<uint32_t> after;
};

}  // namespace kvstore::engine
