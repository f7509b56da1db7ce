#include "engine_adapter/kvengine/page_source.h"

#include <absl/strings/str_cat.h>

#include <cstdio>
#include <filesystem>
#include <utility>

#include "engine_adapter/connector/store_pages.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

std::string ModelName(const std::string& model_dir) {
  std::filesystem::path path(model_dir);
  if (path.filename().empty()) path = path.parent_path();  // "dir/"
  return path.filename().string();
}

absl::StatusOr<NamespaceSpec> SpecOf(const GenerateCommand& command, const Backend& backend,
                                     const ModelWeights& weights) {
  const KvLayout& layout = backend.kv_layout();
  NamespaceSpec spec;
  spec.model = ModelName(command.model_dir);
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

absl::StatusOr<std::unique_ptr<PrefixCache>> OpenPrefixCache(const GenerateCommand& command,
                                                             Backend& backend,
                                                             const ModelWeights& weights) {
  if (command.store_target.empty()) return std::make_unique<PrivatePages>(backend.page_memory());
  StorePagesOptions options{.target = command.store_target};
  ASSIGN_OR_RETURN(options.spec, SpecOf(command, backend, weights));
  options.namespace_name =
      absl::StrCat(options.spec.model, "-", options.spec.ComputeFingerprint().Hex().substr(0, 8));
  auto pages = std::make_unique<StorePages>(backend.kv_layout(), std::move(options));
  if (!pages->connection().ok()) {
    std::fprintf(stderr, "kvengine: computing without the store: %s\n",
                 std::string(pages->connection().message()).c_str());
  }
  return pages;
}

}  // namespace kvstore::engine
