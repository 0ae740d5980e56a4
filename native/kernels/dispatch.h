#pragma once

#include <cstddef>

#include "kernel.h"

namespace fptq {

// The kernels compiled in, best first; the last one (scalar) runs on any CPU.
struct KernelTable {
  const Kernel* kernels;
  size_t count;
};
KernelTable all_kernels();

// Whether this CPU has what the kernel needs.
bool usable(const Kernel& kernel);

// The product of a kernel for weights of so many bits (4 or 8).
MatMul* matmul_of(const Kernel& kernel, int64_t bits);

// The kernel to use: the one that `forced` (FPTQ_FORCE_KERNEL) names, or the first usable one when
// `forced` is null or empty. Null when the name is unknown or the CPU lacks it; `message` then
// holds one sentence that lists the choices, for an unknown name also those of other CPUs.
const Kernel* choose_kernel(const char* forced, char* message, size_t message_size);

}  // namespace fptq
