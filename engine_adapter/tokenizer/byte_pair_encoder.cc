#include "engine_adapter/tokenizer/byte_pair_encoder.h"

#include <queue>

#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

constexpr int32_t kNone = -1;

// A token in the making, linked to its neighbours by index.
struct Symbol {
  uint32_t token;
  int32_t previous;
  int32_t next;
  bool is_alive;
};

// A merge that was possible when it was queued: of symbols[position] and its right neighbour.
struct Candidate {
  uint32_t rank;
  int32_t position;
  uint32_t token;

  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

class PieceMerger {
 public:
  using Merges = absl::flat_hash_map<BytePairEncoder::TokenPair, BytePairEncoder::Merge>;

  PieceMerger(const Merges& merges, std::vector<Symbol> symbols)
      : merges_(merges), symbols_(std::move(symbols)) {}

  void Run(std::vector<uint32_t>& tokens) {
    const auto count = static_cast<int32_t>(symbols_.size());
    for (int32_t i = 0; i + 1 < count; ++i) Queue(i);
    while (!queue_.empty()) {
      const Candidate candidate = queue_.top();
      queue_.pop();
      Apply(candidate);
    }
    for (int32_t i = 0; i != kNone && i < count; i = At(i).next) tokens.push_back(At(i).token);
  }

 private:
  Symbol& At(int32_t index) { return symbols_[static_cast<size_t>(index)]; }

  void Queue(int32_t left) {
    if (left == kNone || At(left).next == kNone) return;
    const auto merge = merges_.find({At(left).token, At(At(left).next).token});
    if (merge != merges_.end()) queue_.push({merge->second.rank, left, merge->second.token});
  }

  // Does nothing if the pair changed since it was queued.
  void Apply(const Candidate& candidate) {
    Symbol& left = At(candidate.position);
    if (!left.is_alive || left.next == kNone) return;
    Symbol& right = At(left.next);
    const auto merge = merges_.find({left.token, right.token});
    if (merge == merges_.end() || merge->second.token != candidate.token) return;
    left.token = candidate.token;
    right.is_alive = false;
    left.next = right.next;
    if (right.next != kNone) At(right.next).previous = candidate.position;
    Queue(left.previous);
    Queue(candidate.position);
  }

  const Merges& merges_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue_;
};

}  // namespace

BytePairEncoder::BytePairEncoder(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto it = vocabulary_.id_of_bytes.find(std::string(1, static_cast<char>(byte)));
    token_of_byte_[byte] = it == vocabulary_.id_of_bytes.end() ? -1 : int64_t{it->second};
  }
}

std::optional<uint32_t> BytePairEncoder::TokenOfBytes(std::string_view bytes) const {
  const auto it = vocabulary_.id_of_bytes.find(AbslView(bytes));
  if (it == vocabulary_.id_of_bytes.end()) return std::nullopt;
  return it->second;
}

void BytePairEncoder::Encode(std::string_view piece, std::vector<uint32_t>& tokens) const {
  if (vocabulary_.whole_pieces_first) {
    if (const std::optional<uint32_t> whole = TokenOfBytes(piece); whole.has_value()) {
      tokens.push_back(*whole);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char byte : piece) {
    const int64_t token = token_of_byte_[static_cast<unsigned char>(byte)];
    if (token < 0) continue;
    const auto index = static_cast<int32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({static_cast<uint32_t>(token), index - 1, kNone, true});
  }
  PieceMerger(vocabulary_.merges, std::move(symbols)).Run(tokens);
}

}  // namespace kvstore::engine
