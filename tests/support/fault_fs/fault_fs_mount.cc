#include "tests/support/fault_fs/fault_fs_mount.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace kvstore::testing {

std::unique_ptr<FaultFsMount> FaultFsMount::Create() {
  std::unique_ptr<FaultFsMount> mount(new FaultFsMount());
  return mount->Mount() ? std::move(mount) : nullptr;
}

bool FaultFsMount::Mount() {
  if (access("/dev/fuse", R_OK | W_OK) != 0 || access(FAULT_FS_PROGRAM, X_OK) != 0) return false;
  char name[] = "/var/tmp/fault_fs.XXXXXX";
  if (mkdtemp(name) == nullptr) return false;
  root_ = name;
  backing_ = root_ + "/backing";
  mount_ = root_ + "/mount";
  struct stat outside {
  }, inside{};
  if (mkdir(backing_.c_str(), 0700) != 0 || mkdir(mount_.c_str(), 0700) != 0 ||
      stat(mount_.c_str(), &outside) != 0) {
    return false;
  }
  server_ = fork();
  if (server_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that crashes leaves no server behind
    execl(FAULT_FS_PROGRAM, FAULT_FS_PROGRAM, backing_.c_str(), mount_.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 5000; ++i) {
    if (stat(mount_.c_str(), &inside) == 0 && inside.st_dev != outside.st_dev) return true;
    if (waitpid(server_, nullptr, WNOHANG) == server_) {
      server_ = -1;
      return false;
    }
    usleep(1000);
  }
  return false;
}

FaultFsMount::~FaultFsMount() {
  if (server_ > 0) {
    Set("clear");
    umount2(mount_.c_str(), MNT_DETACH);
    // The server ends by itself once nothing is open; it is ours, so it may also be ended.
    for (int i = 0; i < 500; ++i) {
      if (waitpid(server_, nullptr, WNOHANG) == server_) {
        server_ = -1;
        break;
      }
      usleep(1000);
    }
    if (server_ > 0) {
      kill(server_, SIGKILL);
      waitpid(server_, nullptr, 0);
    }
  }
  std::error_code error;
  if (!root_.empty()) std::filesystem::remove_all(root_, error);
}

bool FaultFsMount::Set(const std::string& command) {
  const std::string line = command + "\n";
  const int fd = open((mount_ + "/.fault").c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool is_ok = write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  return close(fd) == 0 && is_ok;
}

FaultFsMount::Counts FaultFsMount::counts() const {
  Counts counts;
  std::ifstream in(mount_ + "/.fault");
  std::string word;
  in >> word >> counts.operations >> word >> counts.faults;
  return counts;
}

}  // namespace kvstore::testing
