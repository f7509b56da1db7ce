// Files that hold pages one after another: read and written page by page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvstore::kvctl {

// The data of `put`. Confined to one thread.
class PageSource {
 public:
  // Errors: InvalidArgument, the file cannot be opened, or it is a regular file of another size
  // than `total_bytes`.
  static absl::StatusOr<PageSource> Open(const std::string& path, uint64_t total_bytes);
  PageSource(PageSource&& other) noexcept;
  PageSource& operator=(PageSource&&) = delete;
  ~PageSource();

  // Fills `out`. Errors: InvalidArgument, the data end before it is full; Unavailable, the file
  // cannot be read.
  absl::Status Read(std::span<std::byte> out);
  // Errors: InvalidArgument, there are more bytes (only a pipe can still have some).
  absl::Status ExpectEnd();

 private:
  PageSource(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// What `get` writes: under a temporary name in the same folder until Finish(), so that the file is
// whole or as it was before. A path that is no regular file (a pipe, /dev/null) is written
// directly. Confined to one thread.
class PageSink {
 public:
  // Errors: InvalidArgument, the file cannot be created there.
  static absl::StatusOr<PageSink> Create(const std::string& path);
  PageSink(PageSink&& other) noexcept;
  PageSink& operator=(PageSink&&) = delete;
  ~PageSink();  // without Finish(): the file stays as it was

  // Errors: ResourceExhausted, no space; Unavailable, other write errors.
  absl::Status Write(std::span<const std::byte> bytes);
  // Gives the file its name. Errors as Write().
  absl::Status Finish();

 private:
  PageSink(int fd, std::string path, std::string temporary_path)
      : fd_(fd), path_(std::move(path)), temporary_path_(std::move(temporary_path)) {}
  absl::Status WriteError(int error) const;

  int fd_;
  std::string path_;
  std::string temporary_path_;  // empty: written directly, or finished
};

}  // namespace kvstore::kvctl
