// Small model folders for the tests of this folder: well-formed ones, and ones broken in one place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace kvstore::engine {

// A fresh folder that is removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvstore-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }

  void Write(const std::string& name, const std::string& contents) const {
    std::ofstream(path_ / name, std::ios::binary) << contents;
  }

 private:
  std::filesystem::path path_;
};

// The bytes of a safetensors file with this header text and `data_bytes` bytes 0, 1, 2, ...
inline std::string SafetensorsBytes(const std::string& header, size_t data_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>((header.size() >> (8 * i)) & 0xff));
  bytes += header;
  for (size_t i = 0; i < data_bytes; ++i) bytes.push_back(static_cast<char>(i));
  return bytes;
}

using TensorShapes = std::map<std::string, std::vector<int64_t>>;

// A well-formed file of BF16 tensors, packed in name order.
inline std::string SafetensorsOf(const TensorShapes& shapes) {
  nlohmann::json header;
  int64_t offset = 0;
  for (const auto& [name, shape] : shapes) {
    int64_t num_bytes = 2;
    for (int64_t dimension : shape) num_bytes *= dimension;
    header[name] = {
        {"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {offset, offset + num_bytes}}};
    offset += num_bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return SafetensorsBytes(text, static_cast<size_t>(offset));
}

// One layer, 2 query heads and 1 KV head of 4.
inline nlohmann::json TinyConfig(const std::string& model_type = "llama") {
  return {{"model_type", model_type},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", 1},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 4},
          {"vocab_size", 16},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"max_position_embeddings", 64},
          {"eos_token_id", 2}};
}

// What TinyConfig("llama") needs.
inline TensorShapes TinyTensors() {
  const std::string layer = "model.layers.0.";
  return {{"model.embed_tokens.weight", {16, 8}},
          {"model.norm.weight", {8}},
          {"lm_head.weight", {16, 8}},
          {layer + "input_layernorm.weight", {8}},
          {layer + "post_attention_layernorm.weight", {8}},
          {layer + "self_attn.q_proj.weight", {8, 8}},
          {layer + "self_attn.k_proj.weight", {4, 8}},
          {layer + "self_attn.v_proj.weight", {4, 8}},
          {layer + "self_attn.o_proj.weight", {8, 8}},
          {layer + "mlp.gate_proj.weight", {12, 8}},
          {layer + "mlp.up_proj.weight", {12, 8}},
          {layer + "mlp.down_proj.weight", {8, 12}}};
}

}  // namespace kvstore::engine
