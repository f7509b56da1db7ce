#include "engine_adapter/serving/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kvstore::engine {
namespace {

using nlohmann::json;
using testing::ElementsAre;

absl::StatusOr<OpenAiRequest> Completion(json body) {
  if (!body.contains("model")) body["model"] = "m";
  return ParseOpenAiRequest(Endpoint::kCompletions, body.dump());
}
absl::StatusOr<OpenAiRequest> Chat(json body) {
  if (!body.contains("model")) body["model"] = "m";
  return ParseOpenAiRequest(Endpoint::kChatCompletions, body.dump());
}

TEST(OpenAiRequest, ReadsEveryParameterOfACompletion) {
  const auto request = Completion({{"prompt", "p"},
                                   {"max_tokens", 7},
                                   {"temperature", 0.5},
                                   {"top_p", 0.25},
                                   {"top_k", 9},
                                   {"seed", -3},
                                   {"stop", {"a", "b"}},
                                   {"stream", true},
                                   {"stream_options", {{"include_usage", true}}},
                                   {"user", "somebody"}});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "m");
  EXPECT_EQ(std::get<std::string>(request->completion.prompt), "p");
  EXPECT_EQ(request->completion.max_tokens, 7);
  EXPECT_EQ(request->completion.sampling.temperature, 0.5f);
  EXPECT_EQ(request->completion.sampling.top_p, 0.25f);
  EXPECT_EQ(request->completion.sampling.top_k, 9);
  EXPECT_EQ(request->completion.seed, static_cast<uint64_t>(-3));
  EXPECT_THAT(request->completion.stops, ElementsAre("a", "b"));
  EXPECT_TRUE(request->is_stream);
  EXPECT_TRUE(request->wants_usage);
}

TEST(OpenAiRequest, HasTheDefaultsOfOpenAi) {
  const auto request = Completion({{"prompt", "p"}, {"stop", nullptr}, {"n", 1}});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->completion.max_tokens, 16);
  EXPECT_EQ(request->completion.sampling.temperature, 1.0f);
  EXPECT_EQ(request->completion.seed, std::nullopt);
  EXPECT_FALSE(request->is_stream);
  const auto chat = Chat({{"messages", {{{"role", "user"}, {"content", "hi"}}}}});
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->completion.max_tokens, std::nullopt);
}

TEST(OpenAiRequest, APromptIsATextOrTokensOrOneOfThem) {
  for (const json& prompt : {json("p"), json::array({"p"})}) {
    EXPECT_EQ(std::get<std::string>(Completion({{"prompt", prompt}})->completion.prompt), "p");
  }
  for (const json& prompt : {json::array({1, 2}), json::array({json::array({1, 2})})}) {
    EXPECT_THAT(
        std::get<std::vector<uint32_t>>(Completion({{"prompt", prompt}})->completion.prompt),
        ElementsAre(1, 2));
  }
}

TEST(OpenAiRequest, AMessageMayComeInTextParts) {
  const auto chat = Chat(
      {{"messages",
        {{{"role", "system"}, {"content", "s"}},
         {{"role", "user"},
          {"content", {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}}}}});
  ASSERT_TRUE(chat.ok()) << chat.status();
  const auto& messages = std::get<Conversation>(chat->completion.prompt).messages;
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[1].content, "ab");
}

TEST(OpenAiRequest, WhatItDoesNotDoIsRefusedByNameUnlessItIsOff) {
  const json on = {{"n", 2},
                   {"best_of", 2},
                   {"echo", true},
                   {"suffix", "s"},
                   {"logprobs", 1},
                   {"logit_bias", {{"5", 1}}},
                   {"presence_penalty", 0.5},
                   {"frequency_penalty", 0.5},
                   {"response_format", {{"type", "json_object"}}},
                   {"tools", {{{"type", "function"}}}},
                   {"guided_json", "x"}};
  for (const auto& [name, value] : on.items()) {
    const auto request = Completion({{"prompt", "p"}, {name, value}});
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(StatusParameter(request.status()), name);
  }
  const json off = {{"n", 1},           {"best_of", 1},
                    {"echo", false},    {"logprobs", nullptr},
                    {"logit_bias", {}}, {"presence_penalty", 0.0},
                    {"tools", nullptr}, {"response_format", {{"type", "text"}}}};
  for (const auto& [name, value] : off.items()) {
    EXPECT_TRUE(Completion({{"prompt", "p"}, {name, value}}).ok()) << name;
  }
}

TEST(OpenAiRequest, RefusesBadValuesAndNamesTheParameter) {
  struct BadCase {
    const char* parameter;
    json body;
  };
  const std::vector<BadCase> cases = {
      {"model", {{"prompt", "p"}, {"model", 1}}},
      {"prompt", {{"prompt", nullptr}}},
      {"prompt", {{"prompt", json::array()}}},
      {"prompt", {{"prompt", {"a", "b"}}}},
      {"prompt", {{"prompt", {1, -1}}}},
      {"prompt", {{"prompt", {1, 4294967296}}}},
      {"prompt", {{"prompt", {1.5}}}},
      {"max_tokens", {{"prompt", "p"}, {"max_tokens", 0}}},
      {"max_tokens", {{"prompt", "p"}, {"max_tokens", 1.5}}},
      {"max_tokens", {{"prompt", "p"}, {"max_tokens", "7"}}},
      {"max_tokens", {{"prompt", "p"}, {"max_tokens", 18446744073709551615u}}},
      {"temperature", {{"prompt", "p"}, {"temperature", -0.1}}},
      {"temperature", {{"prompt", "p"}, {"temperature", "hot"}}},
      {"temperature", {{"prompt", "p"}, {"temperature", 1e300}}},
      {"top_p", {{"prompt", "p"}, {"top_p", 0}}},
      {"seed", {{"prompt", "p"}, {"seed", 0.5}}},
      {"stop", {{"prompt", "p"}, {"stop", {"a", "b", "c", "d", "e"}}}},
      {"stop", {{"prompt", "p"}, {"stop", 7}}},
      {"stream", {{"prompt", "p"}, {"stream", 1}}},
      {"stream_options", {{"prompt", "p"}, {"stream_options", {{"include_usage", true}}}}},
      {"messages", {{"prompt", "p"}, {"messages", json::array()}}},
      {"max_completion_tokens", {{"prompt", "p"}, {"max_completion_tokens", 5}}},
  };
  for (const BadCase& bad : cases) {
    const auto request = Completion(bad.body);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << bad.body;
    EXPECT_EQ(StatusParameter(request.status()), bad.parameter) << bad.body;
  }
}

TEST(OpenAiRequest, RefusesBadMessages) {
  for (const json& messages :
       {json::array(), json("hi"), json::array({"hi"}), json::array({{{"role", "user"}}}),
        json::array({{{"role", 1}, {"content", "x"}}}),
        json::array({{{"role", "user"}, {"content", json::array()}}}),
        json::array({{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}),
        json::array({{{"role", "user"}, {"content", "x"}, {"tool_calls", {1}}}})}) {
    EXPECT_EQ(Chat({{"messages", messages}}).status().code(), absl::StatusCode::kInvalidArgument)
        << messages;
  }
}

TEST(OpenAiRequest, RefusesWhatIsNoJsonObject) {
  const std::string deep =
      "{\"model\":\"m\",\"prompt\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("7"), deep,
        std::string("{\"model\":\"m\",\"model\":\"n\",\"prompt\":\"p\"}"),
        std::string("{\"model\":\"m\",\"prompt\":\"\xff\"}"),
        std::string("{\"model\":\"m\",\"prompt\":\"\\ud800\"}")}) {
    const auto request = ParseOpenAiRequest(Endpoint::kCompletions, body);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << body.substr(0, 80);
  }
}

}  // namespace
}  // namespace kvstore::engine
