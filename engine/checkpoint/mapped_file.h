// A regular file mapped read-only.
//
// The file must not be truncated or rewritten while it is mapped: a read past its new end raises
// SIGBUS. Checkpoint files are therefore to be treated as immutable; replace them by rename.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace mneme::engine {

class MappedFile {
 public:
  // A directory handle, so that files beside each other are opened in the same folder even if it is
  // renamed meanwhile.
  class Folder {
   public:
    static absl::StatusOr<std::unique_ptr<Folder>> Open(const std::string& path);
    ~Folder();
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    int fd() const { return fd_; }
    const std::string& path() const { return path_; }

   private:
    Folder(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
    const int fd_;
    const std::string path_;
  };

  // NOT_FOUND if there is no such file, INVALID_ARGUMENT if it cannot be opened or is no regular
  // file.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  // As Open, for the plain file name `name` in `folder`. Symbolic links are refused: a downloaded
  // folder must not make the server read files elsewhere.
  static absl::StatusOr<std::unique_ptr<MappedFile>> OpenIn(const Folder& folder,
                                                            const std::string& name);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Valid as long as this object. Page-aligned; empty for an empty file.
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  static absl::StatusOr<std::unique_ptr<MappedFile>> OpenAt(int folder_fd, const std::string& name,
                                                            std::string path, int extra_flags);
  MappedFile(const std::byte* data, size_t size, std::string path)
      : data_(data), size_(size), path_(std::move(path)) {}
  const std::byte* const data_;
  const size_t size_;
  const std::string path_;
};

}  // namespace mneme::engine
