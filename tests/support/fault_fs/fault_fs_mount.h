// Mounts the fault file system (fault_fs.cc lists its faults) for one test.
//
//   auto mount = FaultFsMount::Create();
//   if (mount == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
//   mount->Set("only pages"); mount->Set("read_error 3"); ... mount->Set("clear");
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

namespace kvstore::testing {

class FaultFsMount {
 public:
  static constexpr char kMissing[] = "needs /dev/fuse, libfuse3 and the right to mount";

  // Null where FUSE cannot be used.
  static std::unique_ptr<FaultFsMount> Create();
  // Clears all faults, unmounts, removes both directories.
  ~FaultFsMount();
  FaultFsMount(const FaultFsMount&) = delete;
  FaultFsMount& operator=(const FaultFsMount&) = delete;

  // False: the command did not reach the file system.
  bool Set(const std::string& command);
  // Reads, writes and fsyncs of matching files, and faults that struck, since the last command.
  struct Counts {
    long operations = 0;
    long faults = 0;
  };
  Counts counts() const;
  const std::string& path() const { return mount_; }       // with faults
  const std::string& backing() const { return backing_; }  // without

 private:
  FaultFsMount() = default;
  bool Mount();

  std::string root_, backing_, mount_;
  pid_t server_ = -1;
};

}  // namespace kvstore::testing
