#include "huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "file_pages.h"
#endif

namespace fptq {

#ifdef __linux__

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Tensors share regions, since otherwise the last huge page of each would be half empty. The part
// of a region that is not written to takes no memory.
constexpr size_t kRegion = size_t{64} << 20;
constexpr size_t kSmallest = size_t{64} << 10;
constexpr size_t kAlignment = 64;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// The first number in a file (after a label, if one is given); -1 without.
long long number_in(const char* path, const char* label = "") {
  FILE* file = std::fopen(path, "re");
  if (file == nullptr) return -1;
  char line[256];
  long long found = -1;
  const size_t length = std::strlen(label);
  while (found < 0 && std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::strncmp(line, label, length) != 0) continue;
    char* end = nullptr;
    const long long value = std::strtoll(line + length, &end, 10);
    if (end == line + length) break;  // "max": no limit
    found = value;
  }
  std::fclose(file);
  return found;
}

// The system can take pages of a file back when memory is short, but not a copy. So a quarter of
// the memory, the machine's and the container's, stays free of copies.
bool memory_left(size_t bytes) {
  const long long available = number_in("/proc/meminfo", "MemAvailable:") * 1024;
  const long long total = number_in("/proc/meminfo", "MemTotal:") * 1024;
  const auto needed = static_cast<long long>(bytes);
  if (available - needed < total / 4) return false;
  struct Group {
    const char *most, *used, *parts, *active, *inactive;
  };
  constexpr Group kGroups[] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
       "active_file ", "inactive_file "},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
       "/sys/fs/cgroup/memory/memory.stat", "total_active_file ", "total_inactive_file "}};
  for (const Group& group : kGroups) {
    const long long most = number_in(group.most);
    if (most <= 0) continue;
    const long long cached =
        number_in(group.parts, group.active) + number_in(group.parts, group.inactive);
    if (number_in(group.used) - cached + needed > most / 4 * 3) return false;
  }
  return true;
}

// A hash of some of the bytes, so that few tensors have to be compared as a whole.
uint64_t sample_of(const void* from, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(from);
  uint64_t hash = bytes;
  for (size_t i = 0; i < bytes; i += bytes / 256 + 1) hash = (hash ^ at[i]) * 0x100000001b3;
  return hash;
}

}  // namespace

// Address space, handed out from its beginning.
class HugeRegion {
 public:
  explicit HugeRegion(size_t bytes) : mapped_(bytes + kHugePage) {
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(base_), kHugePage);
    free_ = reinterpret_cast<char*>(begin);
    end_ = free_ + bytes;
    madvise(free_, bytes, MADV_HUGEPAGE);
  }
  ~HugeRegion() { munmap(base_, mapped_); }
  HugeRegion(const HugeRegion&) = delete;
  HugeRegion& operator=(const HugeRegion&) = delete;

  bool fits(size_t bytes) const { return bytes <= static_cast<size_t>(end_ - free_); }
  void* take(size_t bytes) {
    void* taken = free_;
    free_ += round_up(bytes, kAlignment);
    return taken;
  }

 private:
  size_t mapped_;
  void* base_ = nullptr;
  char* free_ = nullptr;
  char* end_ = nullptr;
};

namespace {

struct Place {
  void* data = nullptr;
  std::shared_ptr<HugeRegion> region;
};

// What this process has moved. Regions live as long as a node that uses them.
class Moved {
 public:
  // Where the bytes are now; no data if there is too little memory. One thread at a time, so that
  // sessions which begin together share what the first of them copies.
  Place place_of(const void* from, size_t bytes, uint64_t sample, const FilePages& pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.bytes != bytes || entry.sample != sample) continue;
      std::shared_ptr<HugeRegion> region = entry.region.lock();
      if (region != nullptr && std::memcmp(entry.data, from, bytes) == 0) {
        pages.release();
        return {entry.data, std::move(region)};
      }
    }
    Place place = take(bytes);
    if (place.data == nullptr) return place;
    copy_and_release(place.data, from, bytes);
    forget_ended();
    entries_.push_back({place.data, bytes, sample, place.region});
    return place;
  }

 private:
  struct Entry {
    void* data;
    size_t bytes;
    uint64_t sample;
    std::weak_ptr<HugeRegion> region;
  };

  Place take(size_t bytes) {
    std::shared_ptr<HugeRegion> region = current_.lock();
    const size_t rounded = round_up(bytes, kAlignment);
    if (region == nullptr || !region->fits(rounded)) {
      const size_t size = rounded > kRegion ? round_up(rounded, kHugePage) : kRegion;
      if (!memory_left(size)) return {};
      region = std::make_shared<HugeRegion>(size);
      current_ = region;
    }
    return {region->take(rounded), region};
  }

  void forget_ended() {
    const auto ended = [](const Entry& entry) { return entry.region.expired(); };
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(), ended), entries_.end());
  }

  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::weak_ptr<HugeRegion> current_;
};

Moved& moved() {
  static auto* all = new Moved;  // sessions may end after static objects do
  return *all;
}

}  // namespace

bool HugePages::wanted() {
  const char* choice = std::getenv("FPTQ_HUGE_PAGES");
  if (choice == nullptr || std::strcmp(choice, "1") != 0) return false;
  constexpr const char* kFolder = "/sys/kernel/mm/transparent_hugepage/";
  char path[96];
  std::snprintf(path, sizeof(path), "%shpage_pmd_size", kFolder);
  if (number_in(path) != static_cast<long long>(kHugePage)) return false;
  std::snprintf(path, sizeof(path), "%senabled", kFolder);
  FILE* file = std::fopen(path, "re");
  if (file == nullptr) return false;
  char line[64] = "";
  const bool read = std::fgets(line, sizeof(line), file) != nullptr;
  std::fclose(file);
  return read && std::strstr(line, "[never]") == nullptr;
}

void prefer_huge_pages(const void* from, size_t bytes) {
  const FilePages pages(from, bytes);
  if (pages.size() >= kHugePage && pages.clean()) {
    madvise(pages.data(), pages.size(), MADV_HUGEPAGE);
  }
}

const void* HugePages::move(const void* from, size_t bytes) try {
  if (from == nullptr || bytes < kSmallest) return from;
  const FilePages pages(from, bytes);
  const uint64_t sample = sample_of(from, bytes);  // reads, so that some pages are in memory
  if (!pages.clean()) return from;
  Place place = moved().place_of(from, bytes, sample, pages);
  if (place.data == nullptr) return from;
  regions_.push_back(std::move(place.region));
  return place.data;
} catch (const std::bad_alloc&) {
  return from;
}

#else

class HugeRegion {};
void prefer_huge_pages(const void*, size_t) {}
bool HugePages::wanted() { return false; }
const void* HugePages::move(const void* from, size_t) { return from; }

#endif

HugePages::HugePages() = default;
HugePages::~HugePages() = default;

}  // namespace fptq
