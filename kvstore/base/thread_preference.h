// Lets threads that do little at a time and are waited for run before threads that do much.
//
// The scheduler is fair by thread, not by tenant: a flood of calls makes the many threads that
// parse and copy busy, and a core thread that all tenants share would get one part in seven.
#pragma once

#include "absl/functional/function_ref.h"

namespace kvstore {

enum class ThreadPreference {
  kBeforeBulk,   // before threads that copy and parse
  kBeforeOthers  // also before the former: for threads that only pass on
};

// The calling thread is preferred to other threads of this process from here on: it asks the
// scheduler for a short time slice (with Linux 6.12 and newer a thread preempts those with longer
// ones; older kernels ignore it) and for three times the part of the processor ("nice" - 5, which
// takes RLIMIT_NICE or privileges); under a real-time policy it goes one or two priorities up.
// Threads that it starts do not inherit it. Where the system refuses, nothing changes.
void PreferThisThread(ThreadPreference preference);

// The calling thread, and every thread that is started from it, gets a tenth of the processor that
// a thread of the former niceness gets beside it ("nice" + 10); alone it gets all of it. For
// threads that copy, parse and write for clients. There is no way back without privileges.
void GiveWayForGood();

// Runs `start` on a thread that gives way, so that the threads it starts do, and waits for it.
void RunGivingWay(absl::FunctionRef<void()> start);

}  // namespace kvstore
