// Weights in huge pages: with pages of 4 KiB, looking up addresses costs a decode step up to a
// fifth of its time in a virtual machine (docs/decisions/0007-huge-pages.md).
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace fptq {

class HugeRegion;

// Asks the system to read pages that are not in memory yet as huge pages, where it can do that for
// files. Nothing is copied.
void prefer_huge_pages(const void* from, size_t bytes);

// Copies in huge pages, kept until this is destroyed.
class HugePages {
 public:
  HugePages();
  ~HugePages();
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Whether FPTQ_HUGE_PAGES=1 and the system has huge pages.
  static bool wanted();

  // Copies bytes into huge pages, gives the pages they came from back to the system, and returns
  // the copy. Returns `from` itself where nothing is moved: the bytes are few, are not pages of a
  // file, or little memory is left. Sessions of one process that move the same bytes share the
  // copy.
  const void* move(const void* from, size_t bytes);

 private:
  std::vector<std::shared_ptr<HugeRegion>> regions_;
};

}  // namespace fptq
