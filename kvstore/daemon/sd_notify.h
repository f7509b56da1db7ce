// Tells systemd what state we are in (the sd_notify protocol: a datagram to $NOTIFY_SOCKET). Does
// nothing without systemd.
#pragma once

#include <string_view>

namespace kvstore::daemon {

// E.g. "READY=1", "STOPPING=1", "STATUS=recovering". Best effort: what systemd makes of it is its
// business.
void SdNotify(std::string_view state);

}  // namespace kvstore::daemon
