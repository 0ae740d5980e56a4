#include "file_pages.h"

#ifdef __linux__

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace fptq {

namespace {

constexpr size_t kPiece = size_t{2} << 20;
constexpr size_t kEntries = 512;  // of /proc/self/pagemap, read at once

uintptr_t page_size() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

FilePages::FilePages(const void* from, size_t bytes) {
  const uintptr_t page = page_size();
  const auto address = reinterpret_cast<uintptr_t>(from);
  begin_ = (address + page - 1) / page * page;
  end_ = (address + bytes) / page * page;
}

bool FilePages::clean() const {
  constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62;
  constexpr uint64_t kFile = uint64_t{1} << 61;
  const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (map < 0) return false;
  const uintptr_t page = page_size();
  bool clean = true;
  uint64_t entries[kEntries];
  for (uintptr_t at = begin_; clean && at < end_;) {
    const size_t left = (end_ - at) / page;
    const size_t count = left < kEntries ? left : kEntries;
    const size_t bytes = count * sizeof(uint64_t);
    const auto offset = static_cast<off_t>(at / page * sizeof(uint64_t));
    clean = pread(map, entries, bytes, offset) == static_cast<ssize_t>(bytes);
    for (size_t i = 0; clean && i < count; ++i) {
      const bool present = (entries[i] & kPresent) != 0;
      clean = (entries[i] & kSwapped) == 0 && (!present || (entries[i] & kFile) != 0);
    }
    at += count * page;
  }
  close(map);
  return clean;
}

void FilePages::release() const {
  if (size() != 0 && clean()) madvise(data(), size(), MADV_DONTNEED);
}

void copy_and_release(void* to, const void* from, size_t bytes) {
  const auto* source = static_cast<const char*>(from);
  const auto page = static_cast<size_t>(page_size());
  size_t kept = 0;  // from here on not released yet: no page lies on both sides
  for (size_t done = 0; done < bytes;) {
    const size_t piece = bytes - done < kPiece ? bytes - done : kPiece;
    std::memcpy(static_cast<char*>(to) + done, source + done, piece);
    done += piece;
    FilePages(source + kept, done - kept).release();
    const size_t beyond = (reinterpret_cast<uintptr_t>(source) + done) % page;
    if (done > kept + beyond) kept = done - beyond;
  }
}

}  // namespace fptq

#endif
