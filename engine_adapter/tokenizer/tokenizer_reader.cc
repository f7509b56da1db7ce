// Reads tokenizer.json into a Tokenizer, and refuses every feature that would change the tokens and
// that we do not know.
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "engine_adapter/json/json_file.h"
#include "engine_adapter/tokenizer/byte_level.h"
#include "engine_adapter/tokenizer/tokenizer.h"
#include "engine_adapter/tokenizer/tokenizer_state.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {

using nlohmann::json;

namespace {

constexpr size_t kAddedTokensMax = 10'000;
constexpr size_t kAddedTokenBytesMax = 1024;
constexpr size_t kSplitsMax = 16;

// What ByteLevel splits by unless use_regex is false (GPT-2).
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

const json& Null() {
  static const json kNull;
  return kNull;
}

const json& Field(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() ? Null() : *it;
}

// The objects of a Sequence, or the object itself, or none for null.
std::vector<const json*> Steps(const json& object, const char* list_key) {
  if (object.is_null()) return {};
  if (Field(object, "type") != "Sequence") return {&object};
  std::vector<const json*> steps;
  for (const json& step : Field(object, list_key)) steps.push_back(&step);
  return steps;
}

bool IsNullOrEmpty(const json& value) { return value.is_null() || value == ""; }

}  // namespace

class TokenizerReader {
 public:
  explicit TokenizerReader(std::string_view file_name) : file_name_(file_name) {}

  absl::StatusOr<Tokenizer> Read(std::string_view text) {
    ASSIGN_OR_RETURN(const json root, ParseJsonObject(text, file_name_));
    // "truncation" and "padding" are defaults of the Python callers, which transformers overrides;
    // they do not concern us.
    RETURN_IF_ERROR(ReadModel(Field(root, "model")));
    RETURN_IF_ERROR(ReadAddedTokens(Field(root, "added_tokens")));
    RETURN_IF_ERROR(ReadNormalizer(Field(root, "normalizer")));
    RETURN_IF_ERROR(ReadPreTokenizer(Field(root, "pre_tokenizer")));
    RETURN_IF_ERROR(ReadDecoder(Field(root, "decoder")));
    RETURN_IF_ERROR(ReadPostProcessor(Field(root, "post_processor")));
    return std::move(tokenizer_);
  }

 private:
  using Vocabulary = BytePairEncoder::Vocabulary;

  Tokenizer::State& state() { return *tokenizer_.state_; }

  absl::Status Bad(std::string_view where, std::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name_, ": ", AbslView(where), ": ", AbslView(problem)));
  }

  // Makes room for `token`; fails if another token has the id.
  absl::Status AddToken(const json& id, std::string_view content, std::string_view where) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= Tokenizer::kTokensMax) {
      return Bad(where,
                 absl::StrCat("the id of a token is no integer below ", Tokenizer::kTokensMax));
    }
    const auto token = id.get<uint32_t>();
    if (token >= state().tokens.size()) state().tokens.resize(token + 1);
    Tokenizer::State::Token& entry = state().tokens[token];
    // The reference decodes a token by its characters where all are of the alphabet, else as it is.
    std::string bytes = BytesOfByteLevelText(content).value_or(std::string(content));
    if (entry.exists && entry.bytes != bytes) {
      return Bad(where, absl::StrCat("two tokens have the id ", token));
    }
    entry.bytes = std::move(bytes);
    entry.exists = true;
    return absl::OkStatus();
  }

  absl::Status ReadModel(const json& model) {
    // Files before 2020 lack the model's type.
    if (!model.is_object() || (Field(model, "type") != "BPE" && !Field(model, "type").is_null())) {
      return Bad("model.type", "only BPE is supported");
    }
    if (!Field(model, "dropout").is_null() && Field(model, "dropout") != 0.0) {
      return Bad("model.dropout", "only null is supported");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!IsNullOrEmpty(Field(model, key))) {
        return Bad(absl::StrCat("model.", key), "only null is supported");
      }
    }
    if (Field(model, "byte_fallback") == true) {
      return Bad("model.byte_fallback", "only the byte-level alphabet is supported, not <0x..>");
    }
    Vocabulary vocabulary;
    vocabulary.whole_pieces_first = Field(model, "ignore_merges") == true;
    RETURN_IF_ERROR(ReadVocabulary(Field(model, "vocab"), vocabulary));
    RETURN_IF_ERROR(ReadMerges(Field(model, "merges"), vocabulary));
    for (int byte = 0; byte < 256 && !Field(model, "unk_token").is_null(); ++byte) {
      if (!vocabulary.id_of_bytes.contains(std::string(1, static_cast<char>(byte)))) {
        return Bad(
            "model.unk_token",
            absl::StrCat("is not supported together with a vocabulary that lacks byte ", byte));
      }
    }
    state().encoder.emplace(std::move(vocabulary));
    return absl::OkStatus();
  }

  absl::Status ReadVocabulary(const json& vocab, Vocabulary& vocabulary) {
    if (!vocab.is_object() || vocab.empty() || vocab.size() > Tokenizer::kTokensMax) {
      return Bad("model.vocab", "an object {token: id} is valid");
    }
    next_added_id_ = static_cast<uint32_t>(vocab.size());
    for (const auto& [content, id] : vocab.items()) {
      RETURN_IF_ERROR(AddToken(id, content, "model.vocab"));
      // A token outside the alphabet can never come out of merges.
      if (auto bytes = BytesOfByteLevelText(content); bytes.has_value()) {
        vocabulary.id_of_bytes[*std::move(bytes)] = id.get<uint32_t>();
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadMerges(const json& merges, Vocabulary& vocabulary) {
    if (!merges.is_array() || merges.size() > Tokenizer::kTokensMax) {
      return Bad("model.merges", "a list of pairs is valid");
    }
    for (const json& merge : merges) {
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        left = text.substr(0, space);
        if (space != std::string::npos) right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      }
      RETURN_IF_ERROR(AddMerge(left, right, vocabulary));
    }
    return absl::OkStatus();
  }

  absl::Status AddMerge(std::string_view left, std::string_view right, Vocabulary& vocabulary) {
    const auto find = [&](const std::optional<std::string>& bytes) {
      return bytes.has_value() ? vocabulary.id_of_bytes.find(*bytes) : vocabulary.id_of_bytes.end();
    };
    const std::optional<std::string> left_bytes = BytesOfByteLevelText(left);
    const std::optional<std::string> right_bytes = BytesOfByteLevelText(right);
    const auto end = vocabulary.id_of_bytes.end();
    if (find(left_bytes) == end || find(right_bytes) == end ||
        find(*left_bytes + *right_bytes) == end) {
      return Bad("model.merges", absl::StrCat("merge ", vocabulary.merges.size(),
                                              " is not a pair of tokens that form a token"));
    }
    const auto rank = static_cast<uint32_t>(vocabulary.merges.size());
    const BytePairEncoder::TokenPair pair = {find(left_bytes)->second, find(right_bytes)->second};
    const bool is_new =
        vocabulary.merges.insert({pair, {rank, find(*left_bytes + *right_bytes)->second}}).second;
    if (!is_new) return Bad("model.merges", absl::StrCat("merge ", rank, " is there twice"));
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens(const json& added) {
    if (added.is_null()) return absl::OkStatus();
    if (!added.is_array() || added.size() > kAddedTokensMax) {
      return Bad("added_tokens", absl::StrCat("a list of at most ", kAddedTokensMax, " is valid"));
    }
    for (const json& token : added) {
      const json& content = Field(token, "content");
      if (!content.is_string() || content.get_ref<const std::string&>().empty() ||
          content.get_ref<const std::string&>().size() > kAddedTokenBytesMax) {
        return Bad("added_tokens", "a token has no content, or too much");
      }
      const auto& text = content.get_ref<const std::string&>();
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        if (Field(token, key) == true) {
          return Bad("added_tokens", absl::StrCat(key, " of \"", text, "\" is not supported"));
        }
      }
      RETURN_IF_ERROR(AddToken(Field(token, "id"), text, "added_tokens"));
      const auto id = Field(token, "id").get<uint32_t>();
      if (!state().added_ids.insert({text, id}).second) {
        return Bad("added_tokens", absl::StrCat("\"", text, "\" is there twice"));
      }
      RETURN_IF_ERROR(CheckAddedId(text, id));
      state().tokens[id].is_special = Field(token, "special") == true;
      const bool is_normalized = Field(token, "normalized") == true;
      (is_normalized ? state().added_normalized : state().added_raw).Add(text, id);
    }
    return absl::OkStatus();
  }

  // The reference ignores the id in the file: it takes that of the vocabulary, else the next free
  // one. A file that says otherwise would be tokenized differently by the two of us.
  absl::Status CheckAddedId(const std::string& text, uint32_t id) {
    const std::optional<uint32_t> in_vocabulary = TokenOfText(text);
    const uint32_t expected = in_vocabulary.value_or(next_added_id_);
    if (id != expected) {
      return Bad("added_tokens", absl::StrCat("\"", text, "\" has id ", id,
                                              ", but the reference numbers it ", expected));
    }
    next_added_id_ = std::max(next_added_id_, id + 1);
    return absl::OkStatus();
  }

  std::optional<uint32_t> TokenOfText(std::string_view text) {
    const std::optional<std::string> bytes = BytesOfByteLevelText(text);
    return bytes.has_value() ? state().encoder->TokenOfBytes(*bytes) : std::nullopt;
  }

  absl::Status ReadNormalizer(const json& normalizer) {
    for (const json* step : Steps(normalizer, "normalizers")) {
      if (Field(*step, "type") != "NFC") return Bad("normalizer", "only NFC is supported");
      state().normalizes_nfc = true;
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer(const json& pre_tokenizer) {
    bool is_byte_level = false;
    for (const json* step : Steps(pre_tokenizer, "pretokenizers")) {
      const json& type = Field(*step, "type");
      if (is_byte_level) return Bad("pre_tokenizer", "ByteLevel must be the last step");
      absl::StatusOr<Pattern> pattern = absl::InvalidArgumentError("");
      if (type == "ByteLevel") {
        is_byte_level = true;
        if (Field(*step, "add_prefix_space") == true) {
          return Bad("pre_tokenizer", "ByteLevel.add_prefix_space is not supported");
        }
        if (Field(*step, "use_regex") == false) continue;
        pattern = Pattern::Compile(kByteLevelPattern);
      } else if (type == "Digits") {
        const bool is_individual = Field(*step, "individual_digits") == true;
        pattern = Pattern::Compile(is_individual ? "\\p{N}" : "\\p{N}+");
      } else if (type == "Split") {
        pattern = ReadSplit(*step);
      } else {
        return Bad("pre_tokenizer",
                   "only ByteLevel, Digits, Split and a Sequence of them are supported");
      }
      if (!pattern.ok()) return Bad("pre_tokenizer", StdView(pattern.status().message()));
      if (state().splits.size() == kSplitsMax) return Bad("pre_tokenizer", "has too many steps");
      state().splits.push_back(*std::move(pattern));
    }
    if (!is_byte_level) return Bad("pre_tokenizer", "only byte-level tokenizers are supported");
    return absl::OkStatus();
  }

  absl::StatusOr<Pattern> ReadSplit(const json& split) const {
    if (Field(split, "behavior") != "Isolated" || Field(split, "invert") == true) {
      return absl::InvalidArgumentError(
          "of Split, only behavior Isolated without invert is "
          "supported");
    }
    const json& pattern = Field(split, "pattern");
    if (Field(pattern, "Regex").is_string()) {
      return Pattern::Compile(Field(pattern, "Regex").get_ref<const std::string&>());
    }
    if (Field(pattern, "String").is_string()) {
      return Pattern::CompileLiteral(Field(pattern, "String").get_ref<const std::string&>());
    }
    return absl::InvalidArgumentError("Split has no pattern");
  }

  absl::Status ReadDecoder(const json& decoder) const {
    for (const json* step : Steps(decoder, "decoders")) {
      if (Field(*step, "type") != "ByteLevel") return Bad("decoder", "only ByteLevel is supported");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor(const json& post_processor) {
    for (const json* step : Steps(post_processor, "processors")) {
      if (Field(*step, "type") == "ByteLevel") continue;
      if (Field(*step, "type") != "TemplateProcessing") {
        return Bad("post_processor", "only ByteLevel and TemplateProcessing are supported");
      }
      RETURN_IF_ERROR(ReadTemplate(*step));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTemplate(const json& step) {
    bool saw_text = false;
    for (const json& part : Field(step, "single")) {
      if (part.is_object() && part.contains("Sequence") && !saw_text) {
        saw_text = true;
        continue;
      }
      const json& name = Field(Field(part, "SpecialToken"), "id");
      const json& ids = name.is_string() ? Field(Field(Field(step, "special_tokens"),
                                                       name.get_ref<const std::string&>().c_str()),
                                                 "ids")
                                         : Null();
      if (!ids.is_array() || ids.size() > 16) return Bad("post_processor", "has a broken template");
      for (const json& id : ids) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= state().tokens.size()) {
          return Bad("post_processor", "names a token that is not in the vocabulary");
        }
        (saw_text ? state().after : state().before).push_back(id.get<uint32_t>());
      }
    }
    if (!saw_text) return Bad("post_processor", "has a template without the text");
    return absl::OkStatus();
  }

  std::string file_name_;
  Tokenizer tokenizer_;
  uint32_t next_added_id_ = 0;  // of an added token that is not in the vocabulary
};

absl::StatusOr<Tokenizer> Tokenizer::Parse(std::string_view json_text, std::string_view file_name) {
  return TokenizerReader(file_name).Read(json_text);
}

absl::StatusOr<Tokenizer> Tokenizer::Read(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "tokenizer.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kFileBytesMax));
  return Parse(text, path.string());
}

}  // namespace kvstore::engine
