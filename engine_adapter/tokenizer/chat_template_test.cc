#include "engine_adapter/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvstore::engine {
namespace {

using ::testing::HasSubstr;

std::string ShortTemplate(const std::string& newline) {
  return "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
         "{{ '<|im_start|>system" +
         newline + "You are SmolLM<|im_end|>" + newline +
         "' }}{% endif %}{{'<|im_start|>' + message['role'] + '" + newline +
         "' + message['content'] + '<|im_end|>' + '" + newline +
         "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant" + newline +
         "' }}{% endif %}";
}

const ChatMessage kQuestion[] = {{"user", "Why?"}};
const ChatMessage kTurns[] = {
    {"system", "Be brief."}, {"user", "Why?"}, {"assistant", "So."}, {"user", "Oh"}};

TEST(ChatTemplate, RendersTheShortTemplateWithItsDefaultSystemMessage) {
  for (const char* newline : {"\n", "\\n"}) {
    const auto chat = ChatTemplate::Recognise(ShortTemplate(newline));
    ASSERT_TRUE(chat.ok()) << chat.status();
    EXPECT_EQ(*chat->Render(kQuestion),
              "<|im_start|>system\nYou are SmolLM<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
              "<|im_start|>assistant\n");
    EXPECT_EQ(*chat->Render(kTurns),
              "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
              "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nOh<|im_end|>\n"
              "<|im_start|>assistant\n");
  }
}

TEST(ChatTemplate, Qwen3HasNoDefaultSystemAndRefusesEarlierAnswers) {
  const auto chat = ChatTemplate::Recognise(
      "{%- if tools %} ... {{- '<|im_start|>assistant\\n' }} {%- if enable_thinking is defined and "
      "enable_thinking is false %}");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*chat->Render(kQuestion), "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_THAT(chat->Render(kTurns).status().ToString(), HasSubstr("role \"assistant\""));
}

TEST(ChatTemplate, RefusesTemplatesItDoesNotKnow) {
  const std::string known = ShortTemplate("\n");
  for (const std::string& jinja : {std::string(), std::string("{{ bos_token }}[INST]"), known + " ",
                                   known.substr(1), "{%- if tools %}<|start_header_id|>" + known}) {
    EXPECT_EQ(ChatTemplate::Recognise(jinja).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ChatTemplate, RefusesConversationsTheTemplateCannotSay) {
  const auto chat = ChatTemplate::Recognise(ShortTemplate("\n"));
  const ChatMessage tool[] = {{"tool", "x"}};
  const ChatMessage late_system[] = {{"user", "x"}, {"system", "y"}};
  EXPECT_FALSE(chat->Render({}).ok());
  EXPECT_FALSE(chat->Render(tool).ok());
  EXPECT_FALSE(chat->Render(late_system).ok());
}

}  // namespace
}  // namespace kvstore::engine
