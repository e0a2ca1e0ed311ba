#include "engine/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace mneme::engine {
namespace {

absl::Status OpenError(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file or folder"));
  }
  if (error == ELOOP) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is a symbolic link, expected a regular file (copy the folder with cp -rL)"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": cannot be opened: ", std::strerror(error)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedFile::Folder>> MappedFile::Folder::Open(
    const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return OpenError(path, errno);
  return std::unique_ptr<Folder>(new Folder(fd, path));
}

MappedFile::Folder::~Folder() { ::close(fd_); }

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  return OpenAt(AT_FDCWD, path, path, 0);
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::OpenIn(const Folder& folder,
                                                               const std::string& name) {
  return OpenAt(folder.fd(), name, absl::StrCat(folder.path(), "/", name), O_NOFOLLOW);
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::OpenAt(int folder_fd,
                                                               const std::string& name,
                                                               std::string path, int extra_flags) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer before we can refuse it.
  const int fd = ::openat(folder_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | extra_flags);
  if (fd < 0) return OpenError(path, errno);
  const auto close_fd = absl::MakeCleanup([fd] { ::close(fd); });  // the mapping outlives it
  struct stat info;
  if (::fstat(fd, &info) != 0) return OpenError(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    return std::unique_ptr<MappedFile>(new MappedFile(nullptr, 0, std::move(path)));
  }
  // Shared, so that replicas on one machine use one copy of the page cache.
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be mapped: ", std::strerror(errno)));
  }
  // Every token reads all weights: with 4 KiB pages address translation costs a quarter of the
  // memory's speed. Where the file system has large folios (ext4 from Linux 6.16, xfs) and the file
  // is not cached in small pages yet, it is now read and mapped in 2 MiB pages. Best effort.
  ::madvise(data, size, MADV_HUGEPAGE);
  return std::unique_ptr<MappedFile>(
      new MappedFile(static_cast<const std::byte*>(data), size, std::move(path)));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace mneme::engine
