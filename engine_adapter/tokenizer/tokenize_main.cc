// Test program: tokenizes with our Tokenizer what a Python test compares with the reference.
//
//   tokenize MODEL_DIR < ["text", ...] > [{"ids": [...], "text": "decoded"}, ...]
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "engine_adapter/tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  using kvstore::engine::AddSpecialTokens;
  using kvstore::engine::SkipSpecialTokens;
  if (argc != 2) {
    std::cerr << "usage: tokenize MODEL_DIR < texts.json\n";
    return 2;
  }
  const auto tokenizer = kvstore::engine::Tokenizer::Read(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  nlohmann::json results = nlohmann::json::array();
  for (const auto& text : nlohmann::json::parse(input)) {
    const auto ids = tokenizer->Encode(text.get_ref<const std::string&>(), AddSpecialTokens::kYes);
    if (!ids.ok()) {
      std::cerr << ids.status() << "\n";
      return 1;
    }
    results.push_back({{"ids", *ids}, {"text", *tokenizer->Decode(*ids, SkipSpecialTokens::kNo)}});
  }
  std::cout << results.dump() << "\n";
  return 0;
}
