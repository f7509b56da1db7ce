// A FUSE file system that passes everything on to a directory and misbehaves on request: the disk
// faults of the tests. Works under O_DIRECT and io_uring.
//
//   fault_fs BACKING_DIRECTORY MOUNT_POINT      (foreground)
//
// Faults are set by writing lines to MOUNT_POINT/.fault (not visible in listings); fault_fs_mount.h
// writes them. Every fault applies to files whose name contains `only` (default: all):
//
//   only NAME              which files
//   read_error N           each Nth read fails with EIO
//   read_short N           each Nth read returns half
//   read_flip N            one bit of each Nth read is flipped
//   read_elsewhere N       each Nth read is of what lies 64 KiB further on
//   write_error N ERRNO    each Nth write fails
//   write_lost N           each Nth write is reported as done and is not
//   write_elsewhere N      each Nth write goes 64 KiB further on
//   fsync_error ERRNO      each fsync fails
//   fail_nth N ERRNO       the Nth read, write or fsync fails, and no other
//   fail_from N ERRNO      the Nth read, write or fsync fails, and all that follow
//   stall MS               each read, write and fsync waits that long, or until the next command
//   clear                  no faults
//
// N counts the reads or writes (fail_*: all three) of matching files since the last command; 0:
// off. Reading the control file gives "operations N faults N" since the last command.
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>

namespace {

constexpr char kControlPath[] = "/.fault";
constexpr off_t kElsewhereBytes = 64 << 10;
// Each stalled request takes one; the control file needs one that is left.
constexpr int kThreadsMax = 256;

struct Faults {
  std::string only;
  long read_error = 0, read_short = 0, read_flip = 0, read_elsewhere = 0;
  long write_error = 0, write_errno = EIO, fsync_errno = 0, stall_ms = 0;
  long write_lost = 0, write_elsewhere = 0, fail_nth = 0, fail_from = 0, fail_errno = EIO;
  long reads = 0, writes = 0, fsyncs = 0;
  long faults = 0;  // how often one of the above has struck

  long operations() const { return reads + writes + fsyncs; }
  bool FailsByCount() const {
    return (fail_nth > 0 && operations() == fail_nth) ||
           (fail_from > 0 && operations() >= fail_from);
  }
};

std::mutex g_mutex;
std::condition_variable g_changed;
Faults g_faults;     // guarded by g_mutex
long g_version = 0;  // guarded by g_mutex; grows with every command
std::string g_backing;

void CountFault() {
  std::lock_guard lock(g_mutex);
  ++g_faults.faults;
}
bool IsNth(long every, long count) {
  const bool is_nth = every > 0 && count % every == 0;
  if (is_nth) CountFault();
  return is_nth;
}
bool FailsByCount(const Faults& faults) {
  const bool fails = faults.FailsByCount();
  if (fails) CountFault();
  return fails;
}
int Result(int rc) { return rc < 0 ? -errno : 0; }
std::string Backing(const char* path) { return g_backing + path; }

void Command(const std::string& line) {
  std::istringstream words(line);
  std::string name;
  words >> name;
  std::lock_guard lock(g_mutex);
  g_faults.reads = g_faults.writes = g_faults.fsyncs = g_faults.faults = 0;
  ++g_version;
  if (name == "clear") g_faults = {};
  if (name == "only") words >> g_faults.only;
  if (name == "read_error") words >> g_faults.read_error;
  if (name == "read_short") words >> g_faults.read_short;
  if (name == "read_flip") words >> g_faults.read_flip;
  if (name == "read_elsewhere") words >> g_faults.read_elsewhere;
  if (name == "write_error") words >> g_faults.write_error >> g_faults.write_errno;
  if (name == "fsync_error") words >> g_faults.fsync_errno;
  if (name == "write_lost") words >> g_faults.write_lost;
  if (name == "write_elsewhere") words >> g_faults.write_elsewhere;
  if (name == "fail_nth") words >> g_faults.fail_nth >> g_faults.fail_errno;
  if (name == "fail_from") words >> g_faults.fail_from >> g_faults.fail_errno;
  if (name == "stall") words >> g_faults.stall_ms;
  g_changed.notify_all();
}

// The faults for one operation on `path`, after waiting as they say.
Faults Meet(const char* path, long Faults::*counter) {
  std::unique_lock lock(g_mutex);
  if (std::string_view(path).find(g_faults.only) == std::string_view::npos) return {};
  if (counter != nullptr) ++(g_faults.*counter);
  const Faults now = g_faults;
  if (now.stall_ms > 0 && counter != nullptr) {
    ++g_faults.faults;
    const long version = g_version;
    g_changed.wait_for(lock, std::chrono::milliseconds(now.stall_ms),
                       [version] { return g_version != version; });
  }
  return now;
}

int GetAttr(const char* path, struct stat* out, fuse_file_info*) {
  if (std::strcmp(path, kControlPath) == 0) {
    *out = {};
    out->st_mode = S_IFREG | 0600;
    out->st_nlink = 1;
    out->st_uid = geteuid();
    return 0;
  }
  return Result(lstat(Backing(path).c_str(), out));
}

int ReadDir(const char* path, void* buffer, fuse_fill_dir_t fill, off_t, fuse_file_info*,
            fuse_readdir_flags) {
  DIR* dir = opendir(Backing(path).c_str());
  if (dir == nullptr) return -errno;
  while (const dirent* item = readdir(dir)) fill(buffer, item->d_name, nullptr, 0, {});
  closedir(dir);
  return 0;
}

int Open(const char* path, fuse_file_info* info) {
  if (std::strcmp(path, kControlPath) == 0) {
    info->direct_io = 1;  // its content has no size
    return 0;
  }
  // The page cache of the backing file takes the place of the device.
  const int fd = open(Backing(path).c_str(), (info->flags & ~O_DIRECT) | O_CLOEXEC);
  if (fd < 0) return -errno;
  info->fh = static_cast<uint64_t>(fd);
  return 0;
}

int Create(const char* path, mode_t mode, fuse_file_info* info) {
  const int fd = open(Backing(path).c_str(), (info->flags & ~O_DIRECT) | O_CREAT | O_CLOEXEC, mode);
  if (fd < 0) return -errno;
  info->fh = static_cast<uint64_t>(fd);
  return 0;
}

int ReadControl(char* buffer, size_t bytes, off_t offset) {
  std::string text;
  {
    std::lock_guard lock(g_mutex);
    text = "operations " + std::to_string(g_faults.operations()) + " faults " +
           std::to_string(g_faults.faults) + "\n";
  }
  if (static_cast<size_t>(offset) >= text.size()) return 0;
  return static_cast<int>(text.copy(buffer, bytes, static_cast<size_t>(offset)));
}

int Read(const char* path, char* buffer, size_t bytes, off_t offset, fuse_file_info* info) {
  if (std::strcmp(path, kControlPath) == 0) return ReadControl(buffer, bytes, offset);
  const Faults faults = Meet(path, &Faults::reads);
  if (FailsByCount(faults)) return -static_cast<int>(faults.fail_errno);
  if (IsNth(faults.read_error, faults.reads)) return -EIO;
  if (IsNth(faults.read_short, faults.reads)) bytes = bytes / 2 / 4096 * 4096;
  if (IsNth(faults.read_elsewhere, faults.reads)) offset += kElsewhereBytes;
  const ssize_t rc = pread(static_cast<int>(info->fh), buffer, bytes, offset);
  if (rc < 0) return -errno;
  if (rc > 0 && IsNth(faults.read_flip, faults.reads)) {
    buffer[(faults.reads * 7919) % rc] ^= static_cast<char>(1 << (faults.reads % 8));
  }
  return static_cast<int>(rc);
}

int Write(const char* path, const char* buffer, size_t bytes, off_t offset, fuse_file_info* info) {
  if (std::strcmp(path, kControlPath) == 0) {
    std::istringstream lines(std::string(buffer, bytes));
    for (std::string line; std::getline(lines, line);) Command(line);
    return static_cast<int>(bytes);
  }
  const Faults faults = Meet(path, &Faults::writes);
  if (FailsByCount(faults)) return -static_cast<int>(faults.fail_errno);
  if (IsNth(faults.write_error, faults.writes)) return -static_cast<int>(faults.write_errno);
  if (IsNth(faults.write_lost, faults.writes)) return static_cast<int>(bytes);
  if (IsNth(faults.write_elsewhere, faults.writes)) offset += kElsewhereBytes;
  const ssize_t rc = pwrite(static_cast<int>(info->fh), buffer, bytes, offset);
  return rc < 0 ? -errno : static_cast<int>(rc);
}

int Fsync(const char* path, int, fuse_file_info* info) {
  const Faults faults = Meet(path, &Faults::fsyncs);
  if (FailsByCount(faults)) return -static_cast<int>(faults.fail_errno);
  if (faults.fsync_errno != 0) {
    CountFault();
    return -static_cast<int>(faults.fsync_errno);
  }
  return Result(fsync(static_cast<int>(info->fh)));
}

int Truncate(const char* path, off_t bytes, fuse_file_info*) {
  if (std::strcmp(path, kControlPath) == 0) return 0;
  return Result(truncate(Backing(path).c_str(), bytes));
}
int Fallocate(const char* path, int mode, off_t offset, off_t bytes, fuse_file_info* info) {
  const Faults faults = Meet(path, nullptr);
  if (faults.write_error > 0 && faults.write_errno == ENOSPC) return -ENOSPC;
  return Result(fallocate(static_cast<int>(info->fh), mode, offset, bytes));
}
int Release(const char* path, fuse_file_info* info) {
  return std::strcmp(path, kControlPath) == 0 ? 0 : Result(close(static_cast<int>(info->fh)));
}
int Rename(const char* from, const char* to, unsigned) {
  return Result(rename(Backing(from).c_str(), Backing(to).c_str()));
}
int Unlink(const char* path) { return Result(unlink(Backing(path).c_str())); }
int MkDir(const char* path, mode_t mode) { return Result(mkdir(Backing(path).c_str(), mode)); }
int RmDir(const char* path) { return Result(rmdir(Backing(path).c_str())); }
int Link(const char* from, const char* to) {
  return Result(link(Backing(from).c_str(), Backing(to).c_str()));
}
int ChMod(const char* path, mode_t mode, fuse_file_info*) {
  return Result(chmod(Backing(path).c_str(), mode));
}
int Utimens(const char* path, const timespec times[2], fuse_file_info*) {
  return Result(utimensat(AT_FDCWD, Backing(path).c_str(), times, AT_SYMLINK_NOFOLLOW));
}
int StatFs(const char* path, struct statvfs* out) {
  return Result(statvfs(Backing(path).c_str(), out));
}

void* Init(fuse_conn_info* connection, fuse_config*) {
  connection->max_write = 1 << 20;
  connection->max_background = kThreadsMax / 2;
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: fault_fs BACKING_DIRECTORY MOUNT_POINT\n");
    return 2;
  }
  g_backing = argv[1];
  fuse_operations operations{};
  operations.init = Init;
  operations.getattr = GetAttr;
  operations.readdir = ReadDir;
  operations.open = Open;
  operations.create = Create;
  operations.read = Read;
  operations.write = Write;
  operations.fsync = Fsync;
  operations.truncate = Truncate;
  operations.fallocate = Fallocate;
  operations.release = Release;
  operations.rename = Rename;
  operations.unlink = Unlink;
  operations.mkdir = MkDir;
  operations.rmdir = RmDir;
  operations.link = Link;
  operations.chmod = ChMod;
  operations.utimens = Utimens;
  operations.statfs = StatFs;
  char foreground[] = "-f";
  char option[] = "-o";
  std::string threads = "max_threads=" + std::to_string(kThreadsMax);
  char* arguments[] = {argv[0], argv[2], foreground, option, threads.data(), nullptr};
  return fuse_main(5, arguments, &operations, nullptr);
}
