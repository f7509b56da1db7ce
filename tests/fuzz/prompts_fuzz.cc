// Chat templates and files of token ids.
//
//   input: which u8; template: Jinja text, zero byte, a message; ids: text
//
// Promises: a rendered chat has the message in it, once, between the marks; ids are what the text
// says, written canonically they read the same.
#include "absl/strings/str_join.h"
#include "engine_adapter/kvengine/prompt.h"
#include "engine_adapter/tokenizer/chat_template.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::engine {
namespace {

void OnTemplate(std::string_view jinja, std::string_view content) {
  const auto chat = ChatTemplate::Recognise(jinja);
  if (!chat.ok()) {
    REQUIRE(absl::IsInvalidArgument(chat.status()) && chat.status().message().size() < 512);
    return;
  }
  const ChatMessage message{"user", std::string(content)};
  const auto rendered = chat->Render({&message, 1});
  REQUIRE(rendered.ok());
  const std::string end =
      "<|im_start|>user\n" + message.content + "<|im_end|>\n<|im_start|>assistant\n";
  REQUIRE(rendered->ends_with(end));
  const ChatMessage stranger{"tool", "x"};
  REQUIRE(!chat->Render({&stranger, 1}).ok() && !chat->Render({}).ok());
  // A system message of one's own takes the place of the default one.
  const ChatMessage both[] = {{"system", "s"}, message};
  const auto own = chat->Render(both);
  REQUIRE(own.ok() && *own == "<|im_start|>system\ns<|im_end|>\n" + end);
}

void OnIds(std::string_view text) {
  const auto ids = ParseTokenIds(text);
  if (!ids.ok()) {
    REQUIRE(absl::IsInvalidArgument(ids.status()) && ids.status().message().size() < 200);
    return;
  }
  REQUIRE(ids->size() <= text.size());
  const auto again = ParseTokenIds(absl::StrJoin(*ids, " "));
  REQUIRE(again.ok() && *again == *ids);
}

}  // namespace
}  // namespace kvstore::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  if ((input.Take<uint8_t>() & 1) == 0) {
    const std::string jinja = fuzz::Copy(input.TakeText());
    engine::OnTemplate(jinja, fuzz::Copy(input.TakeRest()));
  } else {
    engine::OnIds(fuzz::Copy(input.TakeRest()));
  }
  return 0;
}
