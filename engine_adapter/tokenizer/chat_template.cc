#include "engine_adapter/tokenizer/chat_template.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>

#include "engine_adapter/json/json_file.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

constexpr size_t kTemplateBytesMax = 1 << 20;
constexpr size_t kConfigBytesMax = 64 << 20;  // lists every added token

// The whole of the short ChatML template, around its default system message (SmolLM2, Qwen2).
constexpr std::string_view kShortHead =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n";
constexpr std::string_view kShortTail =
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";

// What tells the long templates of Qwen2.5 and Qwen3 apart; without tools they render plain ChatML.
constexpr std::string_view kLongHead = "{%- if tools %}";
constexpr std::string_view kQwen25System =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
constexpr std::string_view kQwen3Mark = "enable_thinking is defined and enable_thinking is false";
constexpr std::string_view kAnswerPrompt = "'<|im_start|>assistant\n'";

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Recognise(std::string_view jinja) {
  // A newline inside a Jinja string is written as such or as \n.
  const std::string text = absl::StrReplaceAll(AbslView(jinja), {{"\\n", "\n"}});
  const std::string_view view = text;
  ChatTemplate result;
  if (view.size() > kShortHead.size() + kShortTail.size() && view.starts_with(kShortHead) &&
      view.ends_with(kShortTail)) {
    const std::string_view system =
        view.substr(kShortHead.size(), view.size() - kShortHead.size() - kShortTail.size());
    if (system.find_first_of("'{}\\") == std::string_view::npos) {
      result.default_system_ = std::string(system);
      return result;
    }
  }
  if (view.starts_with(kLongHead) && view.find(kAnswerPrompt) != std::string_view::npos) {
    result.rewrites_answers_ = view.find(kQwen3Mark) != std::string_view::npos;
    if (result.rewrites_answers_) return result;
    if (view.find(kQwen25System) != std::string_view::npos) {
      result.default_system_ = std::string(kQwen25System);
      return result;
    }
  }
  return absl::InvalidArgumentError(
      "the model's chat template is not one of SmolLM2, Qwen2, Qwen2.5, Qwen3; give the prompt "
      "already rendered");
}

absl::StatusOr<ChatTemplate> ChatTemplate::Read(const std::filesystem::path& model_dir) {
  absl::StatusOr<std::string> jinja =
      ReadTextFile(model_dir / "chat_template.jinja", kTemplateBytesMax);
  if (jinja.ok()) return Recognise(*jinja);
  if (!absl::IsNotFound(jinja.status())) return jinja.status();

  const std::filesystem::path path = model_dir / "tokenizer_config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kConfigBytesMax));
  ASSIGN_OR_RETURN(const json config, ParseJsonObject(text, path.string()));
  const JsonFields fields(config, path.string(), "");
  if (fields.Find("chat_template") == nullptr) {
    return absl::NotFoundError(absl::StrCat(path.string(), ": has no chat_template"));
  }
  ASSIGN_OR_RETURN(const std::string inside, fields.StringOr("chat_template", ""));
  return Recognise(inside);
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages) const {
  if (messages.empty()) return absl::InvalidArgumentError("a conversation needs a message");
  std::string prompt;
  if (default_system_.has_value() && messages.front().role != "system") {
    absl::StrAppend(&prompt, "<|im_start|>system\n", *default_system_, "<|im_end|>\n");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool is_valid = message.role == "user" || (message.role == "system" && i == 0) ||
                          (message.role == "assistant" && !rewrites_answers_);
    if (!is_valid) {
      return absl::InvalidArgumentError(absl::StrCat("message ", i, " has role \"", message.role,
                                                     "\"; valid are system (first only), user",
                                                     rewrites_answers_ ? "" : ", assistant"));
    }
    absl::StrAppend(&prompt, "<|im_start|>", message.role, "\n", message.content, "<|im_end|>\n");
  }
  return prompt + "<|im_start|>assistant\n";
}

}  // namespace kvstore::engine
