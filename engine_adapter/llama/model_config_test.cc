#include "engine_adapter/llama/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

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

json TinyQwen3Moe() {
  json object = TinyConfig("qwen3_moe");
  object.update({{"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 6},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", json::array()},
                 {"norm_topk_prob", true}});
  return object;
}

json TinyDeepseekV2() {
  json object = TinyConfig("deepseek_v2");
  object.erase("head_dim");
  object.update({{"num_hidden_layers", 3},
                 {"num_key_value_heads", 2},
                 {"q_lora_rank", nullptr},
                 {"kv_lora_rank", 16},
                 {"qk_nope_head_dim", 6},
                 {"qk_rope_head_dim", 4},
                 {"v_head_dim", 5},
                 {"n_routed_experts", 4},
                 {"n_shared_experts", 2},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 6},
                 {"first_k_dense_replace", 1},
                 {"moe_layer_freq", 1},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"topk_method", "greedy"},
                 {"scoring_func", "softmax"},
                 {"norm_topk_prob", false},
                 {"routed_scaling_factor", 1.5}});
  return object;
}

json Yarn(double mscale, double mscale_all_dim) {
  return {{"type", "yarn"},
          {"factor", 4.0},
          {"original_max_position_embeddings", 16},
          {"beta_fast", 32},
          {"beta_slow", 1},
          {"mscale", mscale},
          {"mscale_all_dim", mscale_all_dim}};
}

TEST(ModelConfig, ReadsTheExpertsOfQwen3Moe) {
  const auto config = Parse(TinyQwen3Moe());
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(config->experts.has_value());
  EXPECT_EQ(config->experts->num_experts, 4);
  EXPECT_EQ(config->experts->per_token, 2);
  EXPECT_EQ(config->experts->intermediate_size, 6);
  EXPECT_EQ(config->experts->shared_intermediate_size, 0);
  EXPECT_TRUE(config->experts->is_normalized);
  EXPECT_EQ(config->experts->scale, 1.0);
  EXPECT_TRUE(config->HasExperts(0));
  EXPECT_TRUE(config->has_qk_norm);
  EXPECT_FALSE(config->latent.has_value());
}

TEST(ModelConfig, ReadsTheNumberOfExpertsAsTransformers5WritesIt) {
  json object = TinyQwen3Moe();
  object["num_local_experts"] = 4;
  EXPECT_TRUE(Parse(object).ok());
  object.erase("num_experts");
  EXPECT_EQ(Parse(object)->experts->num_experts, 4);
}

TEST(ModelConfig, ReadsLatentAttentionAndSharedExpertsOfDeepseekV2) {
  const auto config = Parse(TinyDeepseekV2());
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(config->latent.has_value() && config->experts.has_value());
  EXPECT_EQ(config->latent->kv_rank, 16);
  EXPECT_EQ(config->latent->nope_dim, 6);
  EXPECT_EQ(config->latent->rope_dim, 4);
  EXPECT_EQ(config->latent->value_dim, 5);
  EXPECT_EQ(config->latent->cached_size(), 20);
  EXPECT_EQ(config->head_dim, 10);
  EXPECT_EQ(config->query_size(), 20);
  EXPECT_EQ(config->attended_size(), 10);
  EXPECT_EQ(config->rope_dim(), 4);
  EXPECT_EQ(config->experts->shared_intermediate_size, 12);
  EXPECT_EQ(config->experts->scale, 1.5);
  EXPECT_FALSE(config->experts->is_normalized);
  EXPECT_FALSE(config->HasExperts(0));
  EXPECT_TRUE(config->HasExperts(1));
}

// The factors that transformers gives for the same numbers.
TEST(ModelConfig, ReadsYarnAndWhatItDoesToAttention) {
  const double sharp = 0.1 * std::log(4.0) + 1, sharp_half = 0.05 * std::log(4.0) + 1;
  json deepseek = TinyDeepseekV2();
  deepseek["rope_scaling"] = Yarn(1, 0.5);
  const auto config = Parse(deepseek);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kYarn);
  EXPECT_DOUBLE_EQ(config->rope_scaling.attention_factor, sharp / sharp_half);
  EXPECT_DOUBLE_EQ(config->rope_scaling.score_factor, sharp_half * sharp_half);
  deepseek["rope_scaling"] = Yarn(0.707, 0.707);
  EXPECT_DOUBLE_EQ(Parse(deepseek)->rope_scaling.attention_factor, 1.0);

  json qwen = TinyConfig("qwen3");
  qwen["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}};
  EXPECT_DOUBLE_EQ(Parse(qwen)->rope_scaling.attention_factor, sharp);
  EXPECT_EQ(Parse(qwen)->rope_scaling.score_factor, 1.0);
  qwen["rope_scaling"]["attention_factor"] = 1.25;
  EXPECT_EQ(Parse(qwen)->rope_scaling.attention_factor, 1.25);
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
  const std::string type = GetParam().model_type;
  json object = type == "qwen3_moe"     ? TinyQwen3Moe()
                : type == "deepseek_v2" ? TinyDeepseekV2()
                                        : TinyConfig(type);
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
        BadValue{"scaling_kind", "llama", R"({"rope_scaling":{"rope_type":"longrope","factor":4}})",
                 "rope_scaling.rope_type is \"longrope\"; this engine knows default, linear, "
                 "llama3, yarn"},
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
        BadValue{"sparse_step", "qwen3_moe", R"({"decoder_sparse_step":2})",
                 "decoder_sparse_step is 2; only 1 is supported"},
        BadValue{"dense_layers", "qwen3_moe", R"({"mlp_only_layers":[0]})",
                 "mlp_only_layers is [0]; only [] is supported"},
        BadValue{"experts_absent", "qwen3_moe", R"({"num_experts":null})",
                 "num_local_experts is absent"},
        BadValue{"experts_differ", "qwen3_moe", R"({"num_local_experts":5})",
                 "num_local_experts is 5; only 4"},
        BadValue{"experts_many", "qwen3_moe", R"({"num_experts":1025})", "to 1024"},
        BadValue{"experts_few", "qwen3_moe", R"({"num_experts_per_tok":5})",
                 "num_experts_per_tok is 5; an integer from 1 to 4"},
        BadValue{"expert_size", "qwen3_moe", R"({"moe_intermediate_size":0})",
                 "moe_intermediate_size is 0"},
        BadValue{"window_moe", "qwen3_moe", R"({"sliding_window":16,"use_sliding_window":true})",
                 "sliding window"},
        BadValue{"query_rank", "deepseek_v2", R"({"q_lora_rank":8})", "only null"},
        BadValue{"latent_absent", "deepseek_v2", R"({"kv_lora_rank":null})",
                 "kv_lora_rank is absent"},
        BadValue{"latent_large", "deepseek_v2", R"({"kv_lora_rank":8193})", "to 8192"},
        BadValue{"latent_kv_heads", "deepseek_v2", R"({"num_key_value_heads":1})",
                 "num_attention_heads (2) is valid"},
        BadValue{"latent_rope_odd", "deepseek_v2", R"({"qk_rope_head_dim":5})",
                 "cannot be rotated"},
        BadValue{"grouped_choice", "deepseek_v2", R"({"topk_method":"group_limited_greedy"})",
                 "only \"greedy\" is supported"},
        BadValue{"scoring", "deepseek_v2", R"({"scoring_func":"sigmoid"})", "only \"softmax\""},
        BadValue{"normalized", "deepseek_v2", R"({"norm_topk_prob":true})", "only false"},
        BadValue{"expert_frequency", "deepseek_v2", R"({"moe_layer_freq":2})", "only 1"},
        BadValue{"no_shared", "deepseek_v2", R"({"n_shared_experts":0})", "n_shared_experts is 0"},
        BadValue{"dense_many", "deepseek_v2", R"({"first_k_dense_replace":4})", "from 0 to 3"},
        BadValue{"linear_deepseek", "deepseek_v2",
                 R"({"rope_scaling":{"type":"linear","factor":2}})", "knows default and yarn"},
        BadValue{"yarn_betas", "qwen3",
                 R"({"rope_scaling":{"type":"yarn","factor":2,"beta_fast":1,"beta_slow":1,)"
                 R"("original_max_position_embeddings":16}})",
                 "above beta_slow"},
        BadValue{"yarn_original", "qwen3", R"({"rope_scaling":{"type":"yarn","factor":2}})",
                 "original_max_position_embeddings is absent"},
        BadValue{"yarn_truncate", "qwen3",
                 R"({"rope_scaling":{"type":"yarn","factor":2,"truncate":false,)"
                 R"("original_max_position_embeddings":16}})",
                 "truncate is false"},
        BadValue{"yarn_theta", "qwen3",
                 R"({"rope_theta":1,"rope_scaling":{"type":"yarn","factor":2,)"
                 R"("original_max_position_embeddings":16}})",
                 "rope_theta is above 1"},
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
