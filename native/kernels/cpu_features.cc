#include "cpu_features.h"

#include "kernel.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstring>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fptq {

#if defined(__x86_64__)
namespace {

// Which register files the operating system saves on a context switch. A CPU may have AVX-512 while
// the OS does not keep its registers; then those instructions fault.
uint64_t xcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the 8 KiB of tile registers only when it asks for them.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

constexpr bool has(uint32_t reg, int bit) { return (reg >> bit) & 1; }

bool made_by(const char* vendor) {
  uint32_t highest = 0;
  uint32_t name[3] = {};  // in the order in which CPUID's registers spell it
  if (!__get_cpuid(0, &highest, &name[0], &name[2], &name[1])) return false;
  return std::memcmp(name, vendor, sizeof(name)) == 0;
}

}  // namespace

bool& tuned_for_amd() {
  static bool amd = made_by("AuthenticAMD") || made_by("HygonGenuine");
  return amd;
}

uint32_t cpu_features() {
  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool osxsave = has(c, 27);
  const bool avx = has(c, 28);
  if (!osxsave || !avx) return 0;
  const uint64_t saved = xcr0();
  constexpr uint64_t kYmm = 0x6;   // xmm and ymm
  constexpr uint64_t kZmm = 0xe6;  // and opmask, both halves of zmm
  if ((saved & kYmm) != kYmm) return 0;

  constexpr uint64_t kTiles = 0x60000;  // configuration and data

  uint32_t features = 0;
  if (has(c, 12)) features |= kFma;
  if (has(c, 29)) features |= kF16c;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const uint32_t leaves = a;
  if (has(b, 5)) features |= kAvx2;
  const bool amx = has(d, 24) && has(d, 25);
  if (amx && (saved & kTiles) == kTiles && tiles_permitted()) features |= kAmxInt8;
  if ((saved & kZmm) == kZmm) {
    const bool f = has(b, 16);
    const bool dq = has(b, 17);
    const bool bw = has(b, 30);
    const bool vl = has(b, 31);
    if (f && dq && bw && vl) {
      features |= kAvx512;
      if (has(c, 11)) features |= kAvx512Vnni;
    }
  }
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, 4)) features |= kAvxVnni;
  return features;
}

#elif defined(__aarch64__) && defined(__linux__)

uint32_t cpu_features() {
  // Bits of the kernel's <asm/hwcap.h>, which old systems' headers lack.
  constexpr unsigned long kAsimdDp = 1ul << 20;  // AT_HWCAP
  constexpr unsigned long kI8mm = 1ul << 13;     // AT_HWCAP2
  uint32_t features = 0;
  if (getauxval(AT_HWCAP) & kAsimdDp) features |= kNeonDotprod;
  if (getauxval(AT_HWCAP2) & kI8mm) features |= kNeonI8mm;
  return features;
}

#else

uint32_t cpu_features() { return 0; }

#endif

#if !defined(__x86_64__)
bool& tuned_for_amd() {
  static bool amd = false;
  return amd;
}
#endif

}  // namespace fptq
