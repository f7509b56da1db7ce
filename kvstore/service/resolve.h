// From what a call names (namespace, hashes or tokens) to what the store takes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "kvstore/base/executor.h"
#include "kvstore/service/translate.h"
#include "kvstore/store/store.h"

namespace kvstore::service {

struct ResolvedBlocks {
  store::Store::OpenedNamespace ns;
  std::vector<BlockHash> hashes;
};
using OnResolved = absl::AnyInvocable<void(absl::StatusOr<ResolvedBlocks>)>;

// To be called on the core; runs `then` on the core. Tokens are hashed on `edge` in between: the
// core has no time for SHA-256. Errors: NotFound, the namespace; InvalidArgument, too many blocks.
void ResolveBlocks(store::Store& store, Executor& core, Executor& edge, std::string tenant,
                   NamespaceKey key, BlockKeys blocks, OnResolved then);

}  // namespace kvstore::service
