#include "engine_adapter/llama/model_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine_adapter/llama/test_model_files.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

absl::StatusOr<ModelWeights> OpenTiny(const TempFolder& folder, const json& object,
                                      const TensorShapes& tensors) {
  folder.Write("config.json", object.dump());
  folder.Write("model.safetensors", SafetensorsOf(tensors));
  return ModelWeights::Open(folder.path(), *ReadModelConfig(folder.path()));
}

TEST(ModelWeights, BindsEveryTensorOfALlama) {
  TempFolder folder;
  const auto weights = OpenTiny(folder, TinyConfig(), TinyTensors());
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->layers().size(), 1u);
  const LayerWeights& layer = weights->layers()[0];
  EXPECT_EQ(layer.q_proj.shape, (std::vector<int64_t>{8, 8}));
  EXPECT_EQ(layer.down_proj.shape, (std::vector<int64_t>{8, 12}));
  EXPECT_FALSE(layer.q_bias.has_value());
  EXPECT_FALSE(layer.q_norm.has_value());
  EXPECT_NE(weights->lm_head().address, weights->embedding().address);
}

TEST(ModelWeights, TiedHeadIsTheEmbedding) {
  TempFolder folder;
  json object = TinyConfig();
  object["tie_word_embeddings"] = true;
  TensorShapes tensors = TinyTensors();
  tensors.erase("lm_head.weight");
  const auto weights = OpenTiny(folder, object, tensors);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->lm_head().address, weights->embedding().address);
}

TEST(ModelWeights, DemandsBiasAndNormWhereTheFamilyHasThem) {
  TempFolder folder;
  EXPECT_THAT(OpenTiny(folder, TinyConfig("qwen2"), TinyTensors()).status().ToString(),
              HasSubstr("self_attn.q_proj.bias"));
  EXPECT_THAT(OpenTiny(folder, TinyConfig("qwen3"), TinyTensors()).status().ToString(),
              HasSubstr("self_attn.q_norm.weight"));
  TensorShapes tensors = TinyTensors();
  tensors["model.layers.0.self_attn.q_proj.bias"] = {8};
  tensors["model.layers.0.self_attn.k_proj.bias"] = {4};
  tensors["model.layers.0.self_attn.v_proj.bias"] = {4};
  const auto weights = OpenTiny(folder, TinyConfig("qwen2"), tensors);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers()[0].k_bias->shape, (std::vector<int64_t>{4}));
}

// One dense layer and one of experts, latent attention in both.
json TinyDeepseekV2() {
  json object = TinyConfig("deepseek_v2");
  object.update({{"num_hidden_layers", 2},
                 {"num_key_value_heads", 2},
                 {"kv_lora_rank", 16},
                 {"qk_nope_head_dim", 6},
                 {"qk_rope_head_dim", 4},
                 {"v_head_dim", 5},
                 {"n_routed_experts", 3},
                 {"n_shared_experts", 2},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 7},
                 {"first_k_dense_replace", 1}});
  return object;
}

TensorShapes TinyDeepseekV2Tensors() {
  TensorShapes tensors = {{"model.embed_tokens.weight", {16, 8}},
                          {"model.norm.weight", {8}},
                          {"lm_head.weight", {16, 8}}};
  const auto add_swiglu = [&tensors](const std::string& at, int64_t inner) {
    tensors[at + "gate_proj.weight"] = tensors[at + "up_proj.weight"] = {inner, 8};
    tensors[at + "down_proj.weight"] = {8, inner};
  };
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    tensors[layer + "input_layernorm.weight"] = {8};
    tensors[layer + "post_attention_layernorm.weight"] = {8};
    tensors[layer + "self_attn.q_proj.weight"] = {20, 8};
    tensors[layer + "self_attn.kv_a_proj_with_mqa.weight"] = {20, 8};
    tensors[layer + "self_attn.kv_a_layernorm.weight"] = {16};
    tensors[layer + "self_attn.kv_b_proj.weight"] = {22, 16};
    tensors[layer + "self_attn.o_proj.weight"] = {8, 10};
  }
  add_swiglu("model.layers.0.mlp.", 12);
  tensors["model.layers.1.mlp.gate.weight"] = {3, 8};
  for (const std::string expert : {"0", "1", "2"}) {
    add_swiglu("model.layers.1.mlp.experts." + expert + ".", 7);
  }
  add_swiglu("model.layers.1.mlp.shared_experts.", 14);
  return tensors;
}

TEST(ModelWeights, BindsLatentAttentionAndExperts) {
  TempFolder folder;
  const auto weights = OpenTiny(folder, TinyDeepseekV2(), TinyDeepseekV2Tensors());
  ASSERT_TRUE(weights.ok()) << weights.status();
  const LayerWeights &dense = weights->layers()[0], &mixed = weights->layers()[1];
  EXPECT_FALSE(dense.experts.has_value());
  EXPECT_EQ(dense.gate_proj.shape, (std::vector<int64_t>{12, 8}));
  ASSERT_TRUE(dense.latent.has_value() && mixed.latent.has_value() && mixed.experts.has_value());
  EXPECT_EQ(mixed.latent->kv_up.shape, (std::vector<int64_t>{22, 16}));
  EXPECT_EQ(mixed.gate_proj.address, nullptr);
  EXPECT_EQ(mixed.k_proj.address, nullptr);
  ASSERT_EQ(mixed.experts->experts.size(), 3u);
  EXPECT_EQ(mixed.experts->experts[2].down_proj.shape, (std::vector<int64_t>{8, 7}));
  EXPECT_EQ(mixed.experts->shared->up_proj.shape, (std::vector<int64_t>{14, 8}));
}

TEST(ModelWeights, NamesAnyTensorOfDeepseekV2ThatIsMissingOrTooMuch) {
  for (const auto& [name, shape] : TinyDeepseekV2Tensors()) {
    TempFolder folder;
    TensorShapes tensors = TinyDeepseekV2Tensors();
    tensors.erase(name);
    EXPECT_THAT(OpenTiny(folder, TinyDeepseekV2(), tensors).status().ToString(),
                HasSubstr("\"" + name + "\""));
  }
  TempFolder folder;
  TensorShapes tensors = TinyDeepseekV2Tensors();
  tensors["model.layers.1.mlp.experts.3.up_proj.weight"] = {7, 8};
  EXPECT_THAT(OpenTiny(folder, TinyDeepseekV2(), tensors).status().ToString(),
              HasSubstr("experts.3.up_proj.weight\" is not part of the model"));
}

TEST(ModelWeights, NamesAnyTensorThatIsMissing) {
  for (const auto& [name, shape] : TinyTensors()) {
    TempFolder folder;
    TensorShapes tensors = TinyTensors();
    tensors.erase(name);
    const auto weights = OpenTiny(folder, TinyConfig(), tensors);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(weights.status().ToString(), HasSubstr("\"" + name + "\""));
  }
}

TEST(ModelWeights, NamesAnyTensorOfAnotherShape) {
  for (const auto& [name, shape] : TinyTensors()) {
    TempFolder folder;
    TensorShapes tensors = TinyTensors();
    ++tensors[name].back();
    const auto weights = OpenTiny(folder, TinyConfig(), tensors);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(weights.status().ToString(), HasSubstr("\"" + name + "\" has shape"));
  }
}

TEST(ModelWeights, RefusesATensorItWouldIgnore) {
  TempFolder folder;
  TensorShapes tensors = TinyTensors();
  tensors["model.layers.0.self_attn.o_proj.bias"] = {8};
  EXPECT_THAT(OpenTiny(folder, TinyConfig(), tensors).status().ToString(),
              HasSubstr("o_proj.bias\" is not part of the model"));
}

class ShardedModelWeights : public ::testing::Test {
 protected:
  // Half of the tensors in each of two shards.
  void WriteShards() {
    TensorShapes halves[2];
    for (const auto& [name, shape] : TinyTensors()) halves[name < "model.layers.0.n"][name] = shape;
    folder_.Write("config.json", TinyConfig().dump());
    folder_.Write("a.safetensors", SafetensorsOf(halves[0]));
    folder_.Write("b.safetensors", SafetensorsOf(halves[1]));
    WriteIndex("a.safetensors", "b.safetensors");
  }
  void WriteIndex(const std::string& first, const std::string& second) {
    folder_.Write("model.safetensors.index.json",
                  json({{"weight_map", {{"x", first}, {"y", second}}}}).dump());
  }
  absl::StatusOr<ModelWeights> Open() {
    return ModelWeights::Open(folder_.path(), *ReadModelConfig(folder_.path()));
  }

  TempFolder folder_;
};

TEST_F(ShardedModelWeights, BindOverAllShards) {
  WriteShards();
  const auto weights = Open();
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers()[0].gate_proj.shape, (std::vector<int64_t>{12, 8}));
}

TEST_F(ShardedModelWeights, RefuseFilesOutsideTheFolder) {
  WriteShards();
  WriteIndex("a.safetensors", "../b.safetensors");
  EXPECT_THAT(Open().status().ToString(), HasSubstr("not a plain name"));
  WriteIndex("a.safetensors", "/etc/passwd");
  EXPECT_THAT(Open().status().ToString(), HasSubstr("not a plain name"));
}

TEST_F(ShardedModelWeights, RefuseAMissingShardATensorTwiceAndTwoSources) {
  WriteShards();
  WriteIndex("a.safetensors", "c.safetensors");
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  WriteIndex("a.safetensors", "b.safetensors");
  folder_.Write("b.safetensors", SafetensorsOf(TinyTensors()));
  EXPECT_THAT(Open().status().ToString(), HasSubstr("in another file too"));
  folder_.Write("model.safetensors", SafetensorsOf(TinyTensors()));
  EXPECT_THAT(Open().status().ToString(), HasSubstr("has both"));
}

TEST(ModelWeights, SaysThatThereAreNoWeights) {
  TempFolder folder;
  EXPECT_EQ(ModelWeights::Open(folder.path(), ModelConfig{}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(WeightsRevision, ChangesWithAnyByteOfConfigOrWeights) {
  TempFolder folder;
  const std::string revision = *OpenTiny(folder, TinyConfig(), TinyTensors())->ComputeRevision();
  EXPECT_EQ(revision.size(), 64u);
  EXPECT_EQ(*OpenTiny(folder, TinyConfig(), TinyTensors())->ComputeRevision(), revision);

  json other_config = TinyConfig();
  other_config["rope_theta"] = 10000.5;
  EXPECT_NE(*OpenTiny(folder, other_config, TinyTensors())->ComputeRevision(), revision);

  folder.Write("config.json", TinyConfig().dump());
  std::string bytes = SafetensorsOf(TinyTensors());
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  folder.Write("model.safetensors", bytes);
  const auto flipped = ModelWeights::Open(folder.path(), *ReadModelConfig(folder.path()));
  EXPECT_NE(*flipped->ComputeRevision(), revision);
}

}  // namespace
}  // namespace kvstore::engine
