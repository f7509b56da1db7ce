#include "kvstore/base/thread_preference.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace kvstore {
namespace {

// As the kernel's struct sched_attr, which the C library lacks.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0;  // SCHED_OTHER: the time slice
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

constexpr uint64_t kResetOnFork = 1;
constexpr uint64_t kShortSliceNs = 400'000;     // the usual one is 1.4 ms or more
constexpr uint64_t kShortestSliceNs = 100'000;  // the kernel's own least

}  // namespace

void PreferThisThread(ThreadPreference preference) {
  SchedulingAttributes now;
  if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) != 0) return;
  const bool is_first = preference == ThreadPreference::kBeforeOthers;
  SchedulingAttributes wanted;
  wanted.flags = kResetOnFork;
  wanted.policy = now.policy;
  wanted.nice = now.nice;
  wanted.priority = now.priority;
  if (now.policy == SCHED_OTHER) {
    wanted.runtime_ns = is_first ? kShortestSliceNs : kShortSliceNs;
  } else if (now.policy == SCHED_RR || now.policy == SCHED_FIFO) {
    wanted.priority += is_first ? 2 : 1;
  } else {
    return;
  }
  (void)syscall(SYS_sched_setattr, 0, &wanted, 0);
}

}  // namespace kvstore
