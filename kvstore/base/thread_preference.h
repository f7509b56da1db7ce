// Lets a thread that does little at a time and is waited for run before threads that do much.
#pragma once

namespace kvstore {

enum class ThreadPreference {
  kBeforeBulk,   // before threads that copy and parse
  kBeforeOthers  // also before the former: for threads that only pass on
};

// The calling thread is preferred to other threads of this process from here on, without a larger
// part of the processor: it asks the scheduler for a short time slice (with Linux 6.12 and newer a
// thread preempts those with longer ones; older kernels ignore it), and under a real-time policy
// goes one or two priorities up. Threads that it starts do not inherit it. Where the system
// refuses, nothing changes.
void PreferThisThread(ThreadPreference preference);

}  // namespace kvstore
