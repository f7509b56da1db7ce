#include "transfer/io_uring/file_status.h"

#include <cerrno>
#include <cstring>
#include <string>

namespace kvstore::transfer {

absl::Status FileStatus(int error_number, std::string_view what) {
  const std::string text = std::string(what) + ": " + std::strerror(error_number);
  switch (error_number) {
    case EINVAL:
    case EBADF:
    case EFAULT:
      return absl::InternalError(text);
    default:
      return absl::UnavailableError(text);
  }
}

}  // namespace kvstore::transfer
