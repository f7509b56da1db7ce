#include "engine_adapter/llama/model_weights.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <memory>
#include <set>

#include "engine_adapter/json/json_file.h"
#include "engine_adapter/llama/weights_revision.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

constexpr size_t kIndexBytesMax = 16 << 20;
constexpr size_t kShardsMax = 1000;

// The shards that an index names, ordered. A shard is a file in the model folder itself: a name
// with a slash could lead anywhere.
absl::StatusOr<std::set<std::string>> ReadShardNames(const std::filesystem::path& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kIndexBytesMax));
  ASSIGN_OR_RETURN(const json index, ParseJsonObject(text, index_path.string()));
  const JsonFields fields(index, index_path.string(), "");
  const json* weight_map = fields.Find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->empty()) {
    return fields.Bad("weight_map", "an object {tensor: file} is valid");
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map->items()) {
    const bool is_plain = file.is_string() &&
                          file.get_ref<const std::string&>().ends_with(".safetensors") &&
                          file.get_ref<const std::string&>().find('/') == std::string::npos;
    if (!is_plain) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path.string(), ": weight_map gives tensor \"", tensor,
                       "\" a file that is not a plain name ending in .safetensors"));
    }
    names.insert(file.get<std::string>());
    if (names.size() > kShardsMax) {
      return fields.Bad("weight_map", absl::StrCat("at most ", kShardsMax, " files are valid"));
    }
  }
  return names;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Finds tensors by name over all files and checks their shape.
class TensorBinder {
 public:
  explicit TensorBinder(const std::vector<SafetensorsFile>& files) : files_(files) {}

  // Remembers the first failure; `into` is untouched then.
  void Bind(const std::string& name, const std::vector<int64_t>& shape, TensorView& into) {
    if (!status_.ok()) return;
    const TensorView* found = nullptr;
    for (const SafetensorsFile& file : files_) {
      const TensorView* tensor = file.Find(name);
      if (tensor == nullptr) continue;
      if (found != nullptr) {
        status_ = absl::InvalidArgumentError(
            absl::StrCat(file.path().string(), ": tensor \"", name, "\" is in another file too"));
        return;
      }
      found = tensor;
    }
    const std::string folder = files_.front().path().parent_path().string();
    if (found == nullptr) {
      status_ = absl::InvalidArgumentError(absl::StrCat(folder, ": tensor \"", name, "\" of shape ",
                                                        ShapeText(shape),
                                                        " is missing from the weight files"));
    } else if (found->shape != shape) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(folder, ": tensor \"", name, "\" has shape ", ShapeText(found->shape),
                       "; config.json demands ", ShapeText(shape)));
    } else {
      into = *found;
      bound_.insert(name);
    }
  }

  void Bind(const std::string& name, const std::vector<int64_t>& shape,
            std::optional<TensorView>& into) {
    TensorView view;
    Bind(name, shape, view);
    if (status_.ok()) into = std::move(view);
  }

  // A tensor that nobody bound means arithmetic we do not do (a bias, an adapter): refused, not
  // ignored. Harmless are old files' rotary tables and the copy of a tied lm_head.
  void RefuseUnbound() {
    for (const SafetensorsFile& file : files_) {
      for (const auto& [name, tensor] : file.tensors()) {
        if (!status_.ok()) return;
        if (bound_.contains(name) || name == "lm_head.weight" ||
            name.ends_with(".rotary_emb.inv_freq")) {
          continue;
        }
        status_ = absl::InvalidArgumentError(
            absl::StrCat(file.path().string(), ": tensor \"", name,
                         "\" is not part of the model that config.json describes"));
      }
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  const std::vector<SafetensorsFile>& files_;
  std::set<std::string, std::less<>> bound_;
  absl::Status status_;
};

void BindSwiglu(TensorBinder& binder, const std::string& prefix, int64_t hidden, int64_t inner,
                SwigluWeights& weights) {
  binder.Bind(prefix + "gate_proj.weight", {inner, hidden}, weights.gate_proj);
  binder.Bind(prefix + "up_proj.weight", {inner, hidden}, weights.up_proj);
  binder.Bind(prefix + "down_proj.weight", {hidden, inner}, weights.down_proj);
}

void BindExperts(TensorBinder& binder, const std::string& prefix, const ModelConfig& config,
                 ExpertWeights& weights) {
  const ExpertLayers& shape = *config.experts;
  const int64_t hidden = config.hidden_size;
  binder.Bind(prefix + "gate.weight", {shape.num_experts, hidden}, weights.router);
  weights.experts.resize(static_cast<size_t>(shape.num_experts));
  for (size_t i = 0; i < weights.experts.size() && binder.status().ok(); ++i) {
    BindSwiglu(binder, absl::StrCat(prefix, "experts.", i, "."), hidden, shape.intermediate_size,
               weights.experts[i]);
  }
  if (shape.shared_intermediate_size > 0) {
    BindSwiglu(binder, prefix + "shared_experts.", hidden, shape.shared_intermediate_size,
               weights.shared.emplace());
  }
}

void BindGroupedQueryAttention(TensorBinder& binder, const std::string& prefix,
                               const ModelConfig& config, LayerWeights& layer) {
  const int64_t hidden = config.hidden_size;
  binder.Bind(prefix + "k_proj.weight", {config.kv_size(), hidden}, layer.k_proj);
  binder.Bind(prefix + "v_proj.weight", {config.kv_size(), hidden}, layer.v_proj);
  if (config.has_qkv_bias) {
    binder.Bind(prefix + "q_proj.bias", {config.query_size()}, layer.q_bias);
    binder.Bind(prefix + "k_proj.bias", {config.kv_size()}, layer.k_bias);
    binder.Bind(prefix + "v_proj.bias", {config.kv_size()}, layer.v_bias);
  }
  if (config.has_qk_norm) {
    binder.Bind(prefix + "q_norm.weight", {config.head_dim}, layer.q_norm);
    binder.Bind(prefix + "k_norm.weight", {config.head_dim}, layer.k_norm);
  }
}

void BindLatentAttention(TensorBinder& binder, const std::string& prefix, const ModelConfig& config,
                         LatentWeights& weights) {
  const LatentAttention& shape = *config.latent;
  binder.Bind(prefix + "kv_a_proj_with_mqa.weight", {shape.cached_size(), config.hidden_size},
              weights.kv_down);
  binder.Bind(prefix + "kv_a_layernorm.weight", {shape.kv_rank}, weights.kv_norm);
  binder.Bind(prefix + "kv_b_proj.weight",
              {config.num_heads * (shape.nope_dim + shape.value_dim), shape.kv_rank},
              weights.kv_up);
}

void BindLayer(TensorBinder& binder, const ModelConfig& config, int64_t index,
               LayerWeights& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const int64_t hidden = config.hidden_size;
  binder.Bind(prefix + "input_layernorm.weight", {hidden}, layer.input_norm);
  binder.Bind(attention + "q_proj.weight", {config.query_size(), hidden}, layer.q_proj);
  if (config.latent.has_value()) {
    BindLatentAttention(binder, attention, config, layer.latent.emplace());
  } else {
    BindGroupedQueryAttention(binder, attention, config, layer);
  }
  binder.Bind(attention + "o_proj.weight", {hidden, config.attended_size()}, layer.o_proj);
  binder.Bind(prefix + "post_attention_layernorm.weight", {hidden}, layer.post_attention_norm);
  if (config.HasExperts(index)) {
    BindExperts(binder, prefix + "mlp.", config, layer.experts.emplace());
    return;
  }
  SwigluWeights dense;
  BindSwiglu(binder, prefix + "mlp.", hidden, config.intermediate_size, dense);
  layer.gate_proj = std::move(dense.gate_proj);
  layer.up_proj = std::move(dense.up_proj);
  layer.down_proj = std::move(dense.down_proj);
}

}  // namespace

absl::StatusOr<ModelWeights> ModelWeights::Open(const std::filesystem::path& model_dir,
                                                const ModelConfig& config) {
  ModelWeights weights;
  weights.config_sha256_ = config.config_sha256;
  RETURN_IF_ERROR(weights.MapFiles(model_dir));
  RETURN_IF_ERROR(weights.BindTensors(config));
  return weights;
}

absl::Status ModelWeights::MapFiles(const std::filesystem::path& model_dir) {
  const std::filesystem::path single = model_dir / "model.safetensors";
  const std::filesystem::path index = model_dir / "model.safetensors.index.json";
  std::error_code error;
  const bool has_single = std::filesystem::exists(single, error);
  const bool has_index = std::filesystem::exists(index, error);
  if (has_single && has_index) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir.string(),
                     ": has both model.safetensors and model.safetensors.index.json; remove one"));
  }
  if (!has_single && !has_index) {
    return absl::NotFoundError(absl::StrCat(
        model_dir.string(), ": has neither model.safetensors nor model.safetensors.index.json"));
  }
  std::set<std::string> names = {"model.safetensors"};
  if (has_index) {
    ASSIGN_OR_RETURN(names, ReadShardNames(index));
  }
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(model_dir / name));
    files_.push_back(std::move(file));
  }
  return absl::OkStatus();
}

absl::Status ModelWeights::BindTensors(const ModelConfig& config) {
  TensorBinder binder(files_);
  const std::vector<int64_t> table = {config.vocab_size, config.hidden_size};
  binder.Bind("model.embed_tokens.weight", table, embedding_);
  binder.Bind("model.norm.weight", {config.hidden_size}, final_norm_);
  if (config.tie_word_embeddings) {
    lm_head_ = embedding_;
  } else {
    binder.Bind("lm_head.weight", table, lm_head_);
  }
  layers_.resize(static_cast<size_t>(config.num_layers));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    BindLayer(binder, config, i, layers_[static_cast<size_t>(i)]);
  }
  binder.RefuseUnbound();
  return binder.status();
}

absl::StatusOr<std::string> ModelWeights::ComputeRevision() const {
  return WeightsRevision(config_sha256_, files_);
}

size_t ModelWeights::total_bytes() const {
  size_t total = 0;
  for (const SafetensorsFile& file : files_) total += file.contents().size();
  return total;
}

}  // namespace kvstore::engine
