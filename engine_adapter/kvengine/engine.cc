#include "engine_adapter/kvengine/engine.h"

#include <absl/strings/str_cat.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>

#include "engine_adapter/connector/store_pages.h"
#include "engine_adapter/llama/model_config.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

std::string ModelName(const std::string& model_dir) {
  std::filesystem::path path(model_dir);
  if (path.filename().empty()) path = path.parent_path();  // "dir/"
  return path.filename().string();
}

absl::StatusOr<NamespaceSpec> SpecOf(const EngineOptions& options, const Backend& backend,
                                     const ModelWeights& weights) {
  const KvLayout& layout = backend.kv_layout();
  NamespaceSpec spec;
  spec.model = ModelName(options.model_dir);
  ASSIGN_OR_RETURN(spec.weights_revision, weights.ComputeRevision());
  spec.kv_dtype = std::string(KvDtypeName(layout.dtype));
  spec.layout = std::string(layout.name());
  spec.layout_version = layout.version();
  spec.numerics = std::string(backend.numerics_class());
  spec.block_tokens = static_cast<uint32_t>(layout.block_tokens);
  spec.shape = {.num_slices = static_cast<uint32_t>(layout.num_layers),
                .slice_bytes = static_cast<uint32_t>(layout.slice_bytes())};
  return spec;
}

}  // namespace

absl::StatusOr<Engine> Engine::Load(const EngineOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Read(options.model_dir));
  ASSIGN_OR_RETURN(ModelWeights opened, ModelWeights::Open(options.model_dir, config));
  auto weights = std::make_unique<ModelWeights>(std::move(opened));
  ASSIGN_OR_RETURN(EngineDevice device, OpenDevice(options, config, *weights));
  Engine engine(std::move(weights), std::move(device), std::move(tokenizer));
  if (!options.store_target.empty()) RETURN_IF_ERROR(engine.Connect(options));
  return engine;
}

absl::Status Engine::Connect(const EngineOptions& options) {
  StoreConnectionOptions connection{.target = options.store_target,
                                    .device_slabs = device_.device_slabs};
  ASSIGN_OR_RETURN(connection.spec, SpecOf(options, backend(), *weights_));
  connection.namespace_name = absl::StrCat(connection.spec.model, "-",
                                           connection.spec.ComputeFingerprint().Hex().substr(0, 8));
  connection_ = StoreConnection::Open(std::move(connection));
  if (const absl::Status usable = connection_->Use().status(); !usable.ok()) {
    std::fprintf(stderr, "kvengine: computing without the store: %s\n",
                 std::string(usable.message()).c_str());
  }
  return absl::OkStatus();
}

std::unique_ptr<PrefixCache> Engine::MakePrefixCache() const {
  PageMemory& memory = backend().page_memory();
  if (connection_ == nullptr) return std::make_unique<PrivatePages>(memory);
  return std::make_unique<StorePages>(backend().kv_layout(), connection_, memory,
                                      *device_.page_mover);
}

}  // namespace kvstore::engine
