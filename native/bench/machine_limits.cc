// What this machine can do at most, printed as JSON: the integer multiply-adds of each instruction
// the kernels use on one thread, in GOPS (a multiply-add is two), and reading from memory, in GB/s,
// by as many threads at once as the first argument says (one without it). A second argument,
// "read", leaves the instructions out.
//
// Every loop is assembly, so that it measures the machine and not the compiler; each runs only
// where the CPU has the instruction.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu_features.h"
#include "kernel.h"

namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// The best of several runs of `fn`, which does `amount` of something, per second.
template <class Fn>
double best_rate(double amount, Fn fn) {
  double best = 0.0;
  for (int run = 0; run < 7; ++run) {
    const double start = seconds();
    fn();
    best = std::max(best, amount / (seconds() - start));
  }
  return best;
}

constexpr long kLoops = 4000000;

#if defined(__x86_64__)

#define REPEAT_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define REPEAT_24(X) \
  REPEAT_12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)
#define DOT_512(i) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #i "\n"
#define DOT_256(i) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #i "\n"
#define PAIR(i, t) \
  "vpmaddubsw %%ymm15, %%ymm14, %%ymm" #t "\n vpaddw %%ymm" #t ", %%ymm" #i ", %%ymm" #i "\n"
// The clobbers are the sixteen registers every x86-64 compiler knows; the rest nobody here uses.
#define LOOP(body)                                                                            \
  [] {                                                                                        \
    long n = kLoops;                                                                          \
    __asm__ volatile("1:\n" body "dec %0\n jnz 1b\n"                                          \
                     : "+r"(n)                                                                \
                     :                                                                        \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",  \
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
  }

double amx_peak() {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  const double rate = best_rate(kLoops * 4.0 * 2 * 16 * 16 * 64, [] {
    long n = kLoops;
    __asm__ volatile(
        "1:\n tdpbssd %%tmm6, %%tmm4, %%tmm0\n tdpbssd %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbssd %%tmm6, %%tmm5, %%tmm2\n tdpbssd %%tmm7, %%tmm5, %%tmm3\n dec %0\n jnz 1b\n"
        : "+r"(n)
        :
        : "cc");
  });
  __asm__ volatile("tilerelease");
  return rate;
}

// Reads a block with 256-bit loads and prefetches `ahead` bytes before.
void read_block(const char* at, const char* end, long ahead) {
  __asm__ volatile(
      "1:\n prefetcht0 (%0,%2)\n prefetcht0 64(%0,%2)\n prefetcht0 128(%0,%2)\n"
      "prefetcht0 192(%0,%2)\n vmovups (%0), %%ymm0\n vmovups 64(%0), %%ymm1\n"
      "vmovups 128(%0), %%ymm2\n vmovups 192(%0), %%ymm3\n vmovups 32(%0), %%ymm4\n"
      "vmovups 96(%0), %%ymm5\n vmovups 160(%0), %%ymm6\n vmovups 224(%0), %%ymm7\n"
      "add $256, %0\n cmp %1, %0\n jb 1b\n"
      : "+r"(at)
      : "r"(end), "r"(ahead)
      : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
}

// Far beyond any cache; every run reads another part, the threads their share of it each.
double read_rate(int threads) {
  const size_t part = size_t{256} << 20;
  const size_t share = (part / threads - 65536) / 256 * 256;  // 65536: what is fetched ahead
  std::vector<char> memory(8 * part, 1);
  double best = 0.0;
  for (const long ahead : {512L, 1024L, 2048L, 4096L, 8192L, 16384L}) {
    size_t index = 0;
    const auto run = [&] {
      const char* begin = memory.data() + (index++ % 8) * part;
      std::vector<std::thread> others;
      for (int t = 1; t < threads; ++t) {
        const char* at = begin + t * (part / threads) / 256 * 256;
        others.emplace_back(read_block, at, at + share, ahead);
      }
      read_block(begin, begin + share, ahead);
      for (std::thread& other : others) other.join();
    };
    best = std::max(best, best_rate(static_cast<double>(share) * threads, run));
  }
  return best;
}

#endif

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || threads > 256) {
    std::fprintf(stderr, "the number of threads must be 1 to 256\n");
    return 2;
  }
  std::printf("{");
#if defined(__x86_64__)
  const uint32_t features = fptq::cpu_features();
  const bool all = argc <= 2 || std::strcmp(argv[2], "read") != 0;
  const char* separator = "";
  const auto print = [&](const char* name, double rate) {
    std::printf("%s\"%s\": %.1f", separator, name, rate * 1e-9);
    separator = ", ";
  };
  if (all && (features & fptq::kAmxInt8)) print("amx", amx_peak());
  if (all && (features & fptq::kAvx512Vnni)) {
    print("avx512vnni", best_rate(kLoops * 24.0 * 128, LOOP(REPEAT_24(DOT_512))));
  }
  if (all && (features & fptq::kAvxVnni)) {
    print("avxvnni", best_rate(kLoops * 12.0 * 64, LOOP(REPEAT_12(DOT_256))));
  }
  if (all && (features & fptq::kAvx2)) {
    print("avx2",
          best_rate(kLoops * 8.0 * 64, LOOP(PAIR(0, 8) PAIR(1, 9) PAIR(2, 10) PAIR(3, 11) PAIR(4, 8)
                                                PAIR(5, 9) PAIR(6, 10) PAIR(7, 11))));
  }
  if (features & fptq::kAvx2) print("read", read_rate(threads));
#endif
  std::printf("}\n");
  return 0;
}
