#include "kvstore/policy/leaf_lru.h"

namespace kvstore::policy {

void LeafLru::LinkFirst(List& list, uint32_t node) {
  links_.EnsureSize(size_t{node} + 1);
  links_[node] = {.newer = kNone, .older = list.first};
  (list.first == kNone ? list.last : links_[list.first].newer) = node;
  list.first = node;
  ++size_;
}

void LeafLru::LinkLast(List& list, uint32_t node) {
  links_.EnsureSize(size_t{node} + 1);
  links_[node] = {.newer = list.last, .older = kNone};
  (list.last == kNone ? list.first : links_[list.last].older) = node;
  list.last = node;
  ++size_;
}

void LeafLru::LinkNewerThan(List& list, uint32_t node, uint32_t older) {
  const uint32_t newer = links_[older].newer;
  if (newer == kNone) return LinkFirst(list, node);
  links_.EnsureSize(size_t{node} + 1);
  links_[node] = {.newer = newer, .older = older};
  links_[newer].older = node;
  links_[older].newer = node;
  ++size_;
}

void LeafLru::Unlink(List& list, uint32_t node) {
  const Links l = links_[node];
  (l.newer == kNone ? list.first : links_[l.newer].older) = l.older;
  (l.older == kNone ? list.last : links_[l.older].newer) = l.newer;
  --size_;
}

}  // namespace kvstore::policy
