// Pages of a file that is mapped into memory, which can be given back without losing anything.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fptq {

// The whole pages of a range of addresses.
class FilePages {
 public:
  FilePages(const void* from, size_t bytes);

  void* data() const { return reinterpret_cast<void*>(begin_); }
  size_t size() const { return end_ > begin_ ? end_ - begin_ : 0; }

  // Whether each page in memory is a file's own. One of the heap is not, nor one that was changed.
  bool clean() const;

  // Gives clean pages back. They remain the file's, and come again when they are read again.
  void release() const;

 private:
  uintptr_t begin_, end_;
};

// Copies piece by piece and releases what it has copied, so that no large tensor is in memory
// twice.
void copy_and_release(void* to, const void* from, size_t bytes);

}  // namespace fptq
