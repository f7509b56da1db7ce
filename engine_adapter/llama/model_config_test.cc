#include "engine_adapter/llama/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine_adapter/llama/test_model_files.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<ModelConfig> Parse(const json& object) {
  return ParseModelConfig(object.dump(), "dir/config.json");
}

TEST(ModelConfig, ReadsAllFieldsOfLlama) {
  json object = TinyConfig();
  object["bos_token_id"] = 1;
  object["tie_word_embeddings"] = true;
  const auto config = Parse(object);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, ModelFamily::kLlama);
  EXPECT_EQ(config->num_layers, 1);
  EXPECT_EQ(config->hidden_size, 8);
  EXPECT_EQ(config->intermediate_size, 12);
  EXPECT_EQ(config->num_heads, 2);
  EXPECT_EQ(config->num_kv_heads, 1);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->vocab_size, 16);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_EQ(config->max_positions, 64);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_FALSE(config->has_qkv_bias);
  EXPECT_FALSE(config->has_qk_norm);
  EXPECT_EQ(config->bos_token_id, 1u);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2u));
  EXPECT_EQ(config->config_sha256.size(), 64u);
}

TEST(ModelConfig, KnowsWhatEachFamilyAdds) {
  EXPECT_TRUE(Parse(TinyConfig("qwen2"))->has_qkv_bias);
  EXPECT_FALSE(Parse(TinyConfig("qwen2"))->has_qk_norm);
  EXPECT_TRUE(Parse(TinyConfig("qwen3"))->has_qk_norm);
  EXPECT_FALSE(Parse(TinyConfig("qwen3"))->has_qkv_bias);
  EXPECT_EQ(Parse(TinyConfig("mistral"))->family, ModelFamily::kMistral);
}

TEST(ModelConfig, DerivesTheHeadDimOnlyWhereTheFamilyDoes) {
  json object = TinyConfig();
  object.erase("head_dim");
  EXPECT_EQ(Parse(object)->head_dim, 4);
  object["head_dim"] = nullptr;
  EXPECT_EQ(Parse(object)->head_dim, 4);
  object["model_type"] = "qwen3";
  EXPECT_THAT(Parse(object).status().ToString(), HasSubstr("head_dim is absent"));
}

TEST(ModelConfig, ReadsLlama3ScalingInOldAndNewFiles) {
  const json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 16}};
  json old_file = TinyConfig();
  old_file["rope_scaling"] = scaling;
  json new_file = TinyConfig();
  new_file.erase("rope_theta");
  new_file["rope_parameters"] = scaling;
  new_file["rope_parameters"]["rope_theta"] = 500000.0;

  const auto from_old = Parse(old_file);
  const auto from_new = Parse(new_file);
  ASSERT_TRUE(from_old.ok()) << from_old.status();
  ASSERT_TRUE(from_new.ok()) << from_new.status();
  EXPECT_EQ(from_old->rope_theta, 10000.0);
  EXPECT_EQ(from_new->rope_theta, 500000.0);
  for (const auto* config : {&*from_old, &*from_new}) {
    EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kLlama3);
    EXPECT_EQ(config->rope_scaling.factor, 8.0);
    EXPECT_EQ(config->rope_scaling.low_freq_factor, 1.0);
    EXPECT_EQ(config->rope_scaling.high_freq_factor, 4.0);
    EXPECT_EQ(config->rope_scaling.original_max_positions, 16);
  }
}

TEST(ModelConfig, ReadsLinearAndDefaultScaling) {
  json object = TinyConfig();
  object["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(Parse(object)->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(Parse(object)->rope_scaling.factor, 2.0);
  object["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(Parse(object)->rope_scaling.kind, RopeScaling::Kind::kNone);
}

TEST(ModelConfig, AcceptsAWindowThatIsNotInForce) {
  json mistral = TinyConfig("mistral");
  mistral["sliding_window"] = nullptr;
  EXPECT_TRUE(Parse(mistral).ok());
  mistral["sliding_window"] = 64;
  EXPECT_TRUE(Parse(mistral).ok());
  json qwen = TinyConfig("qwen2");
  qwen["sliding_window"] = 16;
  qwen["use_sliding_window"] = false;
  EXPECT_TRUE(Parse(qwen).ok());
}

struct BadValue {
  const char* name;
  const char* model_type;
  const char* patch;    // merged into TinyConfig, RFC 7396 (null removes a key)
  const char* message;  // must appear in the error
};

class ModelConfigRefuses : public ::testing::TestWithParam<BadValue> {};

TEST_P(ModelConfigRefuses, NamingFileKeyAndWhatIsValid) {
  json object = TinyConfig(GetParam().model_type);
  object.merge_patch(json::parse(GetParam().patch));
  const auto config = Parse(object);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(config.status().ToString(), HasSubstr("dir/config.json: "));
  EXPECT_THAT(config.status().ToString(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Values, ModelConfigRefuses,
    ::testing::Values(
        BadValue{"family", "gpt2", "{}", "model_type is \"gpt2\"; this engine runs llama"},
        BadValue{"no_family", "llama", R"({"model_type":null})", "model_type is absent"},
        BadValue{"family_type", "llama", R"({"model_type":[]})", "a string is valid"},
        BadValue{"architecture", "llama", R"({"architectures":["LlamaForSequence"]})",
                 "LlamaForCausalLM"},
        BadValue{"layers_absent", "llama", R"({"num_hidden_layers":null})",
                 "num_hidden_layers is absent; an integer from 1"},
        BadValue{"layers_zero", "llama", R"({"num_hidden_layers":0})", "num_hidden_layers is 0"},
        BadValue{"layers_negative", "llama", R"({"num_hidden_layers":-4})",
                 "num_hidden_layers is -4"},
        BadValue{"layers_many", "llama", R"({"num_hidden_layers":1025})", "to 1024"},
        BadValue{"layers_float", "llama", R"({"num_hidden_layers":2.0})", "an integer"},
        BadValue{"layers_string", "llama", R"({"num_hidden_layers":"2"})", "an integer"},
        BadValue{"hidden_wraps", "llama", R"({"hidden_size":18446744073709551615})",
                 "hidden_size is 18446744073709551615"},
        BadValue{"vocab_huge", "llama", R"({"vocab_size":1e12})", "vocab_size"},
        BadValue{"kv_heads", "llama", R"({"num_key_value_heads":3})",
                 "a divisor of num_attention_heads (2)"},
        BadValue{"heads_do_not_divide", "llama", R"({"head_dim":null,"hidden_size":9})",
                 "hidden_size is 9; without head_dim, a multiple"},
        BadValue{"head_dim_odd", "llama", R"({"head_dim":5})", "head_dim is 5"},
        BadValue{"head_dim_derived_odd", "llama", R"({"head_dim":null,"hidden_size":6})",
                 "heads of 3 cannot be rotated"},
        BadValue{"eps_zero", "llama", R"({"rms_norm_eps":0})", "rms_norm_eps is 0"},
        BadValue{"eps_bool", "llama", R"({"rms_norm_eps":true})", "rms_norm_eps is true"},
        BadValue{"no_theta", "llama", R"({"rope_theta":null})", "rope_theta is absent"},
        BadValue{"theta_twice", "llama",
                 R"({"rope_parameters":{"rope_type":"default","rope_theta":5e5}})",
                 "contradicts rope_parameters.rope_theta"},
        BadValue{"scaling_list", "llama", R"({"rope_scaling":[1]})", "an object or null"},
        BadValue{"scaling_kind", "llama", R"({"rope_scaling":{"rope_type":"yarn","factor":4}})",
                 "rope_scaling.rope_type is \"yarn\"; this engine knows default, linear, llama3"},
        BadValue{"scaling_no_kind", "llama", R"({"rope_scaling":{"factor":4}})", "type is absent"},
        BadValue{"scaling_factor", "llama",
                 R"({"rope_scaling":{"rope_type":"linear","factor":0.5}})", "rope_scaling.factor"},
        BadValue{"scaling_order", "llama",
                 R"({"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,)"
                 R"("high_freq_factor":4,"original_max_position_embeddings":16}})",
                 "above low_freq_factor"},
        BadValue{"scaling_original", "llama",
                 R"({"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,)"
                 R"("high_freq_factor":4}})",
                 "original_max_position_embeddings is absent"},
        BadValue{"rope_both", "llama",
                 R"({"rope_scaling":{"rope_type":"linear","factor":2},)"
                 R"("rope_parameters":{"rope_type":"linear","factor":4}})",
                 "contradicts rope_parameters"},
        BadValue{"window_mistral", "mistral", R"({"sliding_window":16})", "sliding window"},
        BadValue{"window_llama", "llama", R"({"sliding_window":16})", "sliding window"},
        BadValue{"window_qwen", "qwen2", R"({"sliding_window":16,"use_sliding_window":true})",
                 "sliding window"},
        BadValue{"window_layers", "qwen3", R"({"layer_types":["sliding_attention"]})",
                 "full_attention"},
        BadValue{"activation", "llama", R"({"hidden_act":"gelu"})", "only silu"},
        BadValue{"attention_bias", "llama", R"({"attention_bias":true})", "attention_bias is true"},
        BadValue{"attention_bias_qwen3", "qwen3", R"({"attention_bias":true})",
                 "attention_bias is true"},
        BadValue{"mlp_bias", "llama", R"({"mlp_bias":true})", "mlp_bias is true"},
        BadValue{"interleaved", "llama", R"({"rope_interleaved":true})", "rope_interleaved"},
        BadValue{"partial", "llama", R"({"partial_rotary_factor":0.5})", "partial_rotary_factor"},
        BadValue{"partial_inside", "llama",
                 R"({"rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5}})",
                 "rope_parameters.partial_rotary_factor"},
        BadValue{"quantized", "llama", R"({"quantization_config":{"bits":4}})", "unquantized"},
        BadValue{"eos_large", "llama", R"({"eos_token_id":16})", "below vocab_size (16)"},
        BadValue{"eos_negative", "llama", R"({"eos_token_id":[2,-1]})", "below vocab_size"},
        BadValue{"bos_large", "llama", R"({"bos_token_id":16})", "bos_token_id is 16"},
        BadValue{"tie_type", "llama", R"({"tie_word_embeddings":1})", "true or false"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ModelConfig, RefusesTextThatIsNoObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\":1,\"a\":2}", "\xff\xfe"}) {
    EXPECT_EQ(ParseModelConfig(text, "f").status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(ParseModelConfig(deep, "f").status().ToString(), HasSubstr("nested too deeply"));
}

TEST(ModelConfig, ReadsStopTokensFromTheGenerationConfig) {
  TempFolder folder;
  folder.Write("config.json", TinyConfig().dump());
  EXPECT_THAT(ReadModelConfig(folder.path())->eos_token_ids, ElementsAre(2u));
  folder.Write("generation_config.json", R"({"eos_token_id":[3,5]})");
  EXPECT_THAT(ReadModelConfig(folder.path())->eos_token_ids, ElementsAre(3u, 5u));
  folder.Write("generation_config.json", R"({"eos_token_id":99})");
  EXPECT_THAT(ReadModelConfig(folder.path()).status().ToString(),
              HasSubstr("generation_config.json: eos_token_id is 99"));
}

TEST(ModelConfig, SaysWhichFileIsMissingOrTooLarge) {
  TempFolder folder;
  EXPECT_EQ(ReadModelConfig(folder.path()).status().code(), absl::StatusCode::kNotFound);
  folder.Write("config.json", TinyConfig().dump() + std::string(2 << 20, ' '));
  EXPECT_THAT(ReadModelConfig(folder.path()).status().ToString(), HasSubstr("larger than"));
}

}  // namespace
}  // namespace kvstore::engine
