// ChatTemplate renders a conversation into the prompt text that an instruction-tuned model was
// trained on.
//
// Models bring their template as a Jinja program; we have no Jinja engine. We recognise the ChatML
// templates of SmolLM2, Qwen2, Qwen2.5 and Qwen3 by their text and render those; any other is
// refused.
//
// Threads: immutable after it is read.
#pragma once

#include <absl/status/statusor.h>

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kvstore::engine {

struct ChatMessage {
  std::string role;     // "system", "user" or "assistant"
  std::string content;  // taken as it is: special tokens written in it will be tokenized as such
};

class ChatTemplate {
 public:
  // Reads `model_dir`/chat_template.jinja if it exists, else the "chat_template" of
  // tokenizer_config.json. Errors: NotFound, the model has no template; InvalidArgument, one that
  // we do not know.
  static absl::StatusOr<ChatTemplate> Read(const std::filesystem::path& model_dir);

  // Errors: InvalidArgument, as above.
  static absl::StatusOr<ChatTemplate> Recognise(std::string_view jinja);

  // The prompt, ending where the assistant's answer begins. Encode it without added special
  // tokens.
  // Errors: InvalidArgument, no message, a role other than the three, a system message that is
  // not the first, or (Qwen3, whose template rewrites earlier answers) an assistant message.
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages) const;

 private:
  ChatTemplate() = default;

  std::optional<std::string> default_system_;  // said where the conversation has no system message
  bool rewrites_answers_ = false;
};

}  // namespace kvstore::engine
