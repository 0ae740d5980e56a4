#pragma once

#include <cstdint>

namespace fptq {

// Bits of Feature (kernel.h) that both the CPU and the operating system support.
uint32_t cpu_features();

}  // namespace fptq
