// What the daemon asks of the machine and of its environment at start. The only place that reads
// environment variables.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "kvstore/daemon/config.h"

namespace kvstore::daemon {

// Memory that we may use (the cgroup's limit if it is lower) and the default socket path.
Machine LookAtMachine();

// Raises the soft limit of open files to the hard one. Returns what it is now.
uint64_t RaiseFileLimit();
uint64_t CountOpenFiles();

// Of the running kernel; zeros where it does not say.
std::array<uint8_t, 16> ReadBootId();

// Keeps the allocator from giving buffers of a call (a few 100 KiB) back to the kernel and faulting
// them in again, call after call.
void TuneAllocator();

// Files that we make are ours alone; memory that we hold is in no core dump and open to no debugger
// of another process of our uid.
void HardenProcess();

}  // namespace kvstore::daemon
