#include "kvstore/service/resolve.h"

#include <utility>

namespace kvstore::service {

void ResolveBlocks(store::Store& store, Executor& core, Executor& edge, std::string tenant,
                   NamespaceKey key, BlockKeys blocks, OnResolved then) {
  absl::StatusOr<store::Store::OpenedNamespace> ns = FindNamespace(store, tenant, key);
  if (!ns.ok()) return then(ns.status());
  if (!blocks.by_tokens) return then(ResolvedBlocks{*std::move(ns), std::move(blocks.hashes)});
  edge.Post([&store, &core, tenant = std::move(tenant), ns = *std::move(ns),
             blocks = std::move(blocks), then = std::move(then)]() mutable {
    absl::StatusOr<std::vector<BlockHash>> hashes = HashesOf(std::move(blocks), ns);
    core.Post([&store, tenant = std::move(tenant), fingerprint = ns.fingerprint,
               hashes = std::move(hashes), then = std::move(then)]() mutable {
      if (!hashes.ok()) return then(hashes.status());
      // Again: it may have a new epoch by now.
      absl::StatusOr<store::Store::OpenedNamespace> now = store.FindNamespace(tenant, fingerprint);
      if (!now.ok()) return then(now.status());
      then(ResolvedBlocks{*std::move(now), *std::move(hashes)});
    });
  });
}

}  // namespace kvstore::service
