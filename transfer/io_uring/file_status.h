// The one place where errno of file I/O becomes a Status.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace kvstore::transfer {

// `what`: "read of 4096 bytes at offset 0". EIO, ENOSPC, EROFS and the like are Unavailable (the
// device, retry may help); EINVAL, EBADF, EFAULT are Internal (our bug).
absl::Status FileStatus(int error_number, std::string_view what);

}  // namespace kvstore::transfer
