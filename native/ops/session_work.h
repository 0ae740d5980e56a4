// What an op borrows from its session while it computes: threads and memory.
#pragma once

#include "ort_wrappers.h"

namespace fptq {

// Calls fn(i) for i in 0..count-1 on the session's threads.
template <class Fn>
void parallel_for(const ort::Functions& f, const ort::KernelContext* context, int64_t count,
                  const Fn& fn) {
  if (count <= 1) {
    if (count == 1) fn(size_t{0});
    return;
  }
  const auto call = [](void* data, size_t index) { (*static_cast<const Fn*>(data))(index); };
  ort::check(f, f.KernelContext_ParallelFor(context, call, static_cast<size_t>(count), 0,
                                            const_cast<Fn*>(&fn)));
}

// Memory for one call, from the session's own allocator: its arena makes that cheap.
class Workspace {
 public:
  Workspace(ort::Allocator* allocator, size_t bytes)
      : allocator_(allocator), data_(static_cast<uint8_t*>(allocator->Alloc(allocator, bytes))) {
    if (data_ == nullptr)
      throw ort::error("fptq: out of memory for %zu bytes of activations", bytes);
  }
  ~Workspace() { allocator_->Free(allocator_, data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint8_t* data() const { return data_; }

 private:
  ort::Allocator* allocator_;
  uint8_t* data_;
};

}  // namespace fptq
