// Writes small models with seeded random weights as Hugging Face folders, for tests of the forward
// pass.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace kvstore::engine {

struct RandomExperts {
  int64_t count = 0;
  int64_t per_token = 0;
  int64_t intermediate = 0;
  int64_t shared = 0;        // of deepseek_v2
  int64_t dense_layers = 0;  // of deepseek_v2, the first ones
  double scale = 1.0;        // of deepseek_v2
  bool is_normalized = false;
};

struct RandomLatent {
  int64_t kv_rank = 0;
  int64_t nope_dim = 0;
  int64_t rope_dim = 0;
  int64_t value_dim = 0;
};

struct RandomModel {
  std::string family = "llama";  // model_type
  int64_t layers = 2;
  int64_t hidden = 48;
  int64_t intermediate = 80;
  int64_t heads = 6;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  int64_t vocab = 101;
  int64_t positions = 512;
  bool tied = true;
  std::string dtype = "BF16";  // or "F32"
  nlohmann::json rope_scaling = nullptr;
  RandomExperts experts = {};  // of qwen3_moe and deepseek_v2
  RandomLatent latent = {};    // of deepseek_v2
};

class RandomModelWriter {
 public:
  RandomModelWriter(const RandomModel& model, uint32_t seed) : model_(model), generator_(seed) {}

  void Write(const std::filesystem::path& folder) {
    WriteConfig(folder);
    const int64_t h = model_.hidden;
    // Small beside what the layers add: a tied model would otherwise only repeat its input.
    Add("model.embed_tokens.weight", {model_.vocab, h}, 0.0f, 0.1f);
    Add("model.norm.weight", {h}, 1.0f, 0.1f);
    if (!model_.tied) Add("lm_head.weight", {model_.vocab, h}, 0.0f, 0.3f);
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      const std::string at = "model.layers." + std::to_string(layer) + ".";
      Add(at + "input_layernorm.weight", {h}, 1.0f, 0.1f);
      Add(at + "post_attention_layernorm.weight", {h}, 1.0f, 0.1f);
      if (model_.latent.kv_rank > 0) {
        AddLatentAttention(at + "self_attn.");
      } else {
        AddAttention(at + "self_attn.");
      }
      const bool has_experts = model_.experts.count > 0 && layer >= model_.experts.dense_layers;
      if (has_experts) {
        AddExperts(at + "mlp.");
      } else {
        AddSwiglu(at + "mlp.", model_.intermediate);
      }
    }
    WriteTensors(folder);
  }

 private:
  void WriteConfig(const std::filesystem::path& folder) {
    nlohmann::json config = {{"model_type", model_.family},
                             {"hidden_act", "silu"},
                             {"num_hidden_layers", model_.layers},
                             {"hidden_size", model_.hidden},
                             {"intermediate_size", model_.intermediate},
                             {"num_attention_heads", model_.heads},
                             {"num_key_value_heads", model_.kv_heads},
                             {"head_dim", model_.head_dim},
                             {"vocab_size", model_.vocab},
                             {"rms_norm_eps", 1e-5},
                             {"rope_theta", 10000.0},
                             {"max_position_embeddings", model_.positions},
                             {"tie_word_embeddings", model_.tied}};
    if (!model_.rope_scaling.is_null()) config["rope_scaling"] = model_.rope_scaling;
    if (model_.experts.count > 0) {
      const bool is_deepseek = model_.family == "deepseek_v2";
      config[is_deepseek ? "n_routed_experts" : "num_experts"] = model_.experts.count;
      config["num_experts_per_tok"] = model_.experts.per_token;
      config["moe_intermediate_size"] = model_.experts.intermediate;
      config["norm_topk_prob"] = model_.experts.is_normalized;
      if (is_deepseek) {
        config["n_shared_experts"] = model_.experts.shared;
        config["first_k_dense_replace"] = model_.experts.dense_layers;
        config["routed_scaling_factor"] = model_.experts.scale;
      }
    }
    if (model_.latent.kv_rank > 0) {
      config["kv_lora_rank"] = model_.latent.kv_rank;
      config["qk_nope_head_dim"] = model_.latent.nope_dim;
      config["qk_rope_head_dim"] = model_.latent.rope_dim;
      config["v_head_dim"] = model_.latent.value_dim;
    }
    std::ofstream(folder / "config.json") << config.dump();
  }

  void AddAttention(const std::string& at) {
    const int64_t h = model_.hidden, q = model_.heads * model_.head_dim,
                  kv = model_.kv_heads * model_.head_dim;
    AddProjection(at + "q_proj", q, h, model_.family == "qwen2");
    AddProjection(at + "k_proj", kv, h, model_.family == "qwen2");
    AddProjection(at + "v_proj", kv, h, model_.family == "qwen2");
    AddProjection(at + "o_proj", h, q, false);
    if (model_.family.starts_with("qwen3")) {
      Add(at + "q_norm.weight", {model_.head_dim}, 1.0f, 0.1f);
      Add(at + "k_norm.weight", {model_.head_dim}, 1.0f, 0.1f);
    }
  }

  void AddLatentAttention(const std::string& at) {
    const RandomLatent& latent = model_.latent;
    const int64_t h = model_.hidden;
    AddProjection(at + "q_proj", model_.heads * (latent.nope_dim + latent.rope_dim), h, false);
    AddProjection(at + "kv_a_proj_with_mqa", latent.kv_rank + latent.rope_dim, h, false);
    Add(at + "kv_a_layernorm.weight", {latent.kv_rank}, 1.0f, 0.1f);
    AddProjection(at + "kv_b_proj", model_.heads * (latent.nope_dim + latent.value_dim),
                  latent.kv_rank, false);
    AddProjection(at + "o_proj", h, model_.heads * latent.value_dim, false);
  }

  void AddSwiglu(const std::string& at, int64_t width) {
    AddProjection(at + "gate_proj", width, model_.hidden, false);
    AddProjection(at + "up_proj", width, model_.hidden, false);
    AddProjection(at + "down_proj", model_.hidden, width, false);
  }

  void AddExperts(const std::string& at) {
    const RandomExperts& experts = model_.experts;
    AddProjection(at + "gate", experts.count, model_.hidden, false);
    for (int64_t i = 0; i < experts.count; ++i) {
      AddSwiglu(at + "experts." + std::to_string(i) + ".", experts.intermediate);
    }
    if (experts.shared > 0) {
      AddSwiglu(at + "shared_experts.", experts.shared * experts.intermediate);
    }
  }

  // Weights of size 1 / sqrt(width) keep activations near 1.
  void AddProjection(const std::string& name, int64_t rows, int64_t width, bool has_bias) {
    Add(name + ".weight", {rows, width}, 0.0f, 1.0f / std::sqrt(static_cast<float>(width)));
    if (has_bias) Add(name + ".bias", {rows}, 0.0f, 0.5f);
  }

  void Add(const std::string& name, const std::vector<int64_t>& shape, float mean,
           float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    int64_t elements = 1;
    for (const int64_t dimension : shape) elements *= dimension;
    const size_t begin = data_.size();
    for (int64_t i = 0; i < elements; ++i) {
      const float value = normal(generator_);
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const bool is_bf16 = model_.dtype == "BF16";
      for (int byte = is_bf16 ? 2 : 0; byte < 4; ++byte) {
        data_.push_back(static_cast<char>((bits >> (8 * byte)) & 0xff));
      }
    }
    header_[name] = {
        {"dtype", model_.dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  void WriteTensors(const std::filesystem::path& folder) {
    std::string text = header_.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::ofstream file(folder / "model.safetensors", std::ios::binary);
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>((text.size() >> (8 * i)) & 0xff));
    file << text << data_;
  }

  const RandomModel model_;
  std::mt19937 generator_;
  nlohmann::json header_;
  std::string data_;
};

}  // namespace kvstore::engine
