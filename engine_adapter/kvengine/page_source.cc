#include "engine_adapter/kvengine/page_source.h"

namespace kvstore::engine {

absl::StatusOr<std::unique_ptr<PrefixCache>> OpenPrefixCache(const GenerateCommand&,
                                                             const Backend& backend,
                                                             const ModelWeights&) {
  return std::make_unique<PrivatePages>(backend.kv_layout());
}

}  // namespace kvstore::engine
