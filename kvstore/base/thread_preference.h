// Lets a thread that does little at a time and is waited for run before threads that do much.
#pragma once

namespace kvstore {

// The calling thread is preferred to other threads of this process from here on, without a larger
// part of the processor: it asks the scheduler for the shortest time slice (Linux 6.12 and newer
// then let it preempt; older ones ignore it), and under a real-time policy goes one priority up.
// Threads that it starts do not inherit it. Where the system refuses, nothing changes.
void PreferThisThread();

}  // namespace kvstore
