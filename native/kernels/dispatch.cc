#include "dispatch.h"

#include <cstdio>
#include <cstring>

#include "cpu_features.h"

namespace fptq {

namespace {

#if defined(FPTQ_X86_KERNELS)
constexpr uint32_t kAvx2Set = kAvx2 | kFma | kF16c;
constexpr uint32_t kAvx512Set = kAvx2Set | kAvx512 | kAvx512Vnni;
#endif

// Best first. Adding a kernel is adding its line here, its file to CMakeLists.txt and its functions
// to kernel.h; the native tests loop over this table.
constexpr Kernel kKernels[] = {
#if defined(FPTQ_X86_KERNELS)
    {"amx", kAvx512Set | kAmxInt8, 32, 256, quantize_avx512, matmul_amx, gate_avx2, rotate_avx512,
     encode_avx512, attention_avx512},
    {"avx512vnni", kAvx512Set, 6, 132, quantize_avx512, matmul_avx512vnni, gate_avx2, rotate_avx512,
     encode_avx512, attention_avx512},
    {"avxvnni", kAvx2Set | kAvxVnni, 6, 132, quantize_avx2, matmul_avxvnni, gate_avx2, rotate_avx2,
     encode_avx2, attention_avx2},
    {"avx2", kAvx2Set, 5, 130, quantize_avx2, matmul_avx2, gate_avx2, rotate_avx2, encode_avx2,
     attention_avx2},
#endif
#if defined(FPTQ_ARM_KERNELS)
    {"neon_i8mm", kNeonI8mm, 4, 96, quantize_neon, matmul_neon_i8mm, gate_neon, rotate_neon,
     encode_neon, attention_neon},
    {"neon_dotprod", kNeonDotprod, 4, 96, quantize_neon, matmul_neon_dotprod, gate_neon,
     rotate_neon, encode_neon, attention_neon},
#endif
    {"scalar", 0, 1, 96, quantize_scalar, matmul_scalar, gate_scalar, rotate_scalar, encode_scalar,
     attention_scalar},
};
constexpr size_t kCount = sizeof(kKernels) / sizeof(kKernels[0]);

void list_names(char* out, size_t size, bool only_usable) {
  size_t used = 0;
  out[0] = '\0';
  for (const Kernel& kernel : kKernels) {
    if (only_usable && !usable(kernel)) continue;
    const int written =
        std::snprintf(out + used, size - used, "%s%s", used ? ", " : "", kernel.name);
    if (written < 0 || used + static_cast<size_t>(written) >= size) return;
    used += static_cast<size_t>(written);
  }
}

}  // namespace

KernelTable all_kernels() { return {kKernels, kCount}; }

bool usable(const Kernel& kernel) {
  static const uint32_t features = cpu_features();
  return (kernel.features & ~features) == 0;
}

const Kernel* choose_kernel(const char* forced, char* message, size_t message_size) {
  const bool any = forced == nullptr || forced[0] == '\0';
  bool known = false;
  for (const Kernel& kernel : kKernels) {
    if (!any && std::strcmp(forced, kernel.name) != 0) continue;
    known = true;
    if (usable(kernel)) return &kernel;
  }
  char runnable[128];
  list_names(runnable, sizeof(runnable), true);
  if (known) {
    std::snprintf(message, message_size,
                  "FPTQ_FORCE_KERNEL=%.64s needs instructions that this CPU lacks; it can run: %s",
                  forced, runnable);
    return nullptr;
  }
  char names[128];
  list_names(names, sizeof(names), false);
  std::snprintf(
      message, message_size,
      "FPTQ_FORCE_KERNEL=%.64s names no kernel; the kernels are: %s; this CPU can run: %s", forced,
      names, runnable);
  return nullptr;
}

}  // namespace fptq
