// MemoryMover copies and verifies slots in host memory on threads of its own, so that the core
// thread never does.
//
// Threads: Copy(), Verify(), Accept(), Fail() and Stop() are confined to the executor's thread, as `done`
// is (when the executor is not running any more: to whoever owns it). `done` runs exactly once
// for each call, on the executor or inside Stop(), never inside the call that took it.
// Limits: inflight_max operations that were accepted and whose `done` has not been called; beyond
// that ResourceExhausted. Time:    the deadline is checked before a copy starts and for all that
// wait whenever one ends: an operation is reported at most the time of one copy after its
// deadline (a slot has at most 256 MiB: 50 ms). A copy that ran to its end is OK even if late.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/page_trailer.h"

namespace kvstore::transfer {

class MemoryMover {
 public:
  struct Options {
    std::string name = "mover";  // of its threads, at most 15 characters
    uint32_t num_threads =
        1;  // at least 1. One thread reaches about the rate of memory (README.md)
    size_t inflight_max = 64;  // at least 1
  };
  using Done = absl::AnyInvocable<void(absl::Status)>;

  // `executor` and `clock` outlive the mover; tasks that the mover posted may run after it is gone.
  MemoryMover(Options options, Executor& executor, const Clock& clock);
  ~MemoryMover();  // Stop()

  // CopySlot(dst, src, expect). The memory stays valid until `done`.
  // Errors: what CopySlot reports; DeadlineExceeded; ResourceExhausted; Unavailable, stopped
  // meanwhile.
  void Copy(std::byte* dst, const std::byte* src, const PageIdentity& expect, absl::Time deadline,
            Done done);
  // VerifySlot(slot, expect). As above.
  void Verify(const std::byte* slot, const PageIdentity& expect, absl::Time deadline, Done done);
  // AcceptSlot(slot, expect). As above.
  void Accept(std::byte* slot, const PageIdentity& expect, absl::Time deadline, Done done);
  // Reports `status` by the same way, for callers that refuse an operation themselves: `done` never
  // runs inside this call.
  void Fail(absl::Status status, Done done);

  // Operations that wait fail with Unavailable, those that run end; then every `done` that is due
  // is called, here. Idempotent.
  void Stop();

  size_t inflight_max() const { return options_.inflight_max; }
  // Operations whose `done` has not been called yet.
  size_t in_flight() const;

 private:
  struct Job;
  struct Shared;

  void Submit(Job job);
  static void RunThread(const std::shared_ptr<Shared>& shared);
  static void PostCompletions(const std::shared_ptr<Shared>& shared);
  static void RunCompletions(const std::shared_ptr<Shared>& shared);
  // False: none is due.
  static bool RunOneCompletion(Shared& shared);

  const Options options_;
  // Also held by posted tasks, which may outlive the mover.
  const std::shared_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace kvstore::transfer
