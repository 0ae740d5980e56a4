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

  // Whether each page that is in memory belongs to a file and is unchanged. Pages of the heap do
  // not.
  bool clean() const;

  // Gives clean pages back to the system; they are read from the file again when they are used.
  void release() const;

 private:
  uintptr_t begin_, end_;
};

// Copies piece by piece and releases what it has copied, so that no large tensor is in memory
// twice.
void copy_and_release(void* to, const void* from, size_t bytes);

}  // namespace fptq
