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

// Kernels that differ in nothing but the product share the rest.
#if defined(FPTQ_X86_KERNELS)
constexpr Kernel with_avx512(Kernel kernel) {
  kernel.quantize = quantize_avx512;
  kernel.swiglu = swiglu_avx2;
  kernel.rope = rope_avx512;
  kernel.quantize_kv = quantize_kv_avx512;
  kernel.attention = attention_avx512;
  return kernel;
}

constexpr Kernel with_avx2(Kernel kernel) {
  kernel.quantize = quantize_avx2;
  kernel.swiglu = swiglu_avx2;
  kernel.rope = rope_avx2;
  kernel.quantize_kv = quantize_kv_avx2;
  kernel.attention = attention_avx2;
  return kernel;
}

constexpr Kernel amx() {
  Kernel kernel;
  kernel.name = "amx";
  kernel.features = kAvx512Set | kAmxInt8;
  kernel.row_tile = 32;
  kernel.rows_per_task = 256;
  kernel.matmul_w4a8 = matmul_w4a8_amx;
  kernel.matmul_w8a8 = matmul_w8a8_amx;
  return with_avx512(kernel);
}

constexpr Kernel avx512vnni() {
  Kernel kernel;
  kernel.name = "avx512vnni";
  kernel.features = kAvx512Set;
  kernel.row_tile = 6;
  kernel.rows_per_task = 132;
  kernel.matmul_w4a8 = matmul_w4a8_avx512vnni;
  kernel.matmul_w8a8 = matmul_w8a8_avx512vnni;
  return with_avx512(kernel);
}

constexpr Kernel avxvnni() {
  Kernel kernel;
  kernel.name = "avxvnni";
  kernel.features = kAvx2Set | kAvxVnni;
  kernel.row_tile = 6;
  kernel.rows_per_task = 132;
  kernel.matmul_w4a8 = matmul_w4a8_avxvnni;
  kernel.matmul_w8a8 = matmul_w8a8_avxvnni;
  return with_avx2(kernel);
}

constexpr Kernel avx2() {
  Kernel kernel;
  kernel.name = "avx2";
  kernel.features = kAvx2Set;
  kernel.row_tile = 5;
  kernel.rows_per_task = 130;
  kernel.matmul_w4a8 = matmul_w4a8_avx2;
  kernel.matmul_w8a8 = matmul_w8a8_avx2;
  return with_avx2(kernel);
}
#endif

#if defined(FPTQ_ARM_KERNELS)
constexpr Kernel with_neon(Kernel kernel) {
  kernel.row_tile = 4;
  kernel.rows_per_task = 96;
  kernel.quantize = quantize_neon;
  kernel.swiglu = swiglu_neon;
  kernel.rope = rope_neon;
  kernel.quantize_kv = quantize_kv_neon;
  kernel.attention = attention_neon;
  return kernel;
}

constexpr Kernel neon_i8mm() {
  Kernel kernel;
  kernel.name = "neon_i8mm";
  kernel.features = kNeonI8mm;
  kernel.matmul_w4a8 = matmul_w4a8_neon_i8mm;
  kernel.matmul_w8a8 = matmul_w8a8_neon_i8mm;
  return with_neon(kernel);
}

constexpr Kernel neon_dotprod() {
  Kernel kernel;
  kernel.name = "neon_dotprod";
  kernel.features = kNeonDotprod;
  kernel.matmul_w4a8 = matmul_w4a8_neon_dotprod;
  kernel.matmul_w8a8 = matmul_w8a8_neon_dotprod;
  return with_neon(kernel);
}
#endif

constexpr Kernel scalar() {
  Kernel kernel;
  kernel.name = "scalar";
  kernel.rows_per_task = 96;
  kernel.quantize = quantize_scalar;
  kernel.matmul_w4a8 = matmul_w4a8_scalar;
  kernel.matmul_w8a8 = matmul_w8a8_scalar;
  kernel.swiglu = swiglu_scalar;
  kernel.rope = rope_scalar;
  kernel.quantize_kv = quantize_kv_scalar;
  kernel.attention = attention_scalar;
  return kernel;
}

// Best first. docs/writing_kernels.md says how to add one; the tests loop over this table.
constexpr Kernel kKernels[] = {
#if defined(FPTQ_X86_KERNELS)
    amx(),       avx512vnni(),   avxvnni(), avx2(),
#endif
#if defined(FPTQ_ARM_KERNELS)
    neon_i8mm(), neon_dotprod(),
#endif
    scalar(),
};
constexpr size_t kCount = sizeof(kKernels) / sizeof(kKernels[0]);

// GCC takes the address of a function for no constant under UndefinedBehaviorSanitizer (bug 71962).
#if !defined(FPTQ_SANITIZED)
constexpr bool complete(const Kernel& k) {
  return k.name != nullptr && k.quantize != nullptr && k.matmul_w4a8 != nullptr &&
         k.matmul_w8a8 != nullptr && k.swiglu != nullptr && k.rope != nullptr &&
         k.quantize_kv != nullptr && k.attention != nullptr && k.row_tile > 0 &&
         k.rows_per_task >= k.row_tile;
}
constexpr bool all_complete() {
  for (const Kernel& kernel : kKernels) {
    if (!complete(kernel)) return false;
  }
  return true;
}
static_assert(all_complete(), "a kernel of the table lacks a function");
#endif

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

MatMul* matmul_of(const Kernel& kernel, int64_t bits) {
  return bits == 4 ? kernel.matmul_w4a8 : kernel.matmul_w8a8;
}

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
