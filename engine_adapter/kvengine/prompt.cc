#include "engine_adapter/kvengine/prompt.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <memory>

#include "engine_adapter/tokenizer/chat_template.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr std::string_view kSpaces = " \t\r\n\f\v";

struct CloseFile {
  void operator()(FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

absl::StatusOr<std::string> PromptText(const GenerateCommand& command) {
  if (command.prompt.has_value()) return *command.prompt;
  ASSIGN_OR_RETURN(std::string text, ReadPromptFile(*command.prompt_file));
  if (!command.question.empty()) absl::StrAppend(&text, "\n\n", command.question);
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  const std::unique_ptr<FILE, CloseFile> file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the prompt from ", path));
  }
  std::string text;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    text.append(buffer, count);
    if (text.size() > kPromptBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is longer than ", kPromptBytesMax, " bytes"));
    }
  }
  if (std::ferror(file.get()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the prompt from ", path));
  }
  return text;
}

absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(std::string_view text) {
  std::vector<uint32_t> ids;
  for (size_t at = text.find_first_not_of(kSpaces); at != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    uint32_t id = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stop != word.data() + word.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", ids.size() + 1, " is \"", std::string(word.substr(0, 40)),
                       "\": a number from 0 to 4294967295 is needed"));
    }
    ids.push_back(id);
    at = text.find_first_not_of(kSpaces, end);
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> MakePrompt(const GenerateCommand& command,
                                                 const Tokenizer& tokenizer) {
  if (command.prompt_ids.has_value()) return *command.prompt_ids;
  if (command.prompt_ids_file.has_value()) {
    ASSIGN_OR_RETURN(const std::string text, ReadPromptFile(*command.prompt_ids_file));
    return ParseTokenIds(text);
  }
  ASSIGN_OR_RETURN(std::string text, PromptText(command));
  if (!command.is_chat) return tokenizer.Encode(text, AddSpecialTokens::kYes);
  ASSIGN_OR_RETURN(const ChatTemplate chat, ChatTemplate::Read(command.engine.model_dir));
  const ChatMessage message{"user", std::move(text)};
  ASSIGN_OR_RETURN(const std::string rendered, chat.Render({&message, 1}));
  return tokenizer.Encode(rendered, AddSpecialTokens::kNo);
}

}  // namespace kvstore::engine
