// Sweeping blocks of cleared namespaces, a few thousand nodes at a time beside other work.
//
// Confined to the core thread. A block that is held is left for a later round; the id of an old
// epoch is freed when it has no block left.
#pragma once

#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"

namespace kvstore::store {

class Sweep {
 public:
  Sweep(Copies& copies, NamespaceTable& namespaces, Executor& executor, const Clock& clock)
      : copies_(copies), namespaces_(namespaces), executor_(executor), clock_(clock) {}
  // Old epochs exist: goes on until there is none.
  void Start();

 private:
  void Step();
  void SweepNode(NodeId id);

  Copies& copies_;
  NamespaceTable& namespaces_;
  Executor& executor_;
  const Clock& clock_;
  NodeId next_ = 0;
  bool is_running_ = false;
};

}  // namespace kvstore::store
