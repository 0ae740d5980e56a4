// The inner loop of many rows in assembly, for AVX512-VNNI: compilers (GCC 12) keep 24 accumulators
// in registers only with copies and spills between the instructions that matter, a quarter of the
// speed. In an unnamed namespace like avx512_tiles.h.
//
// Registers: zmm0-23 sums (4 of 16 columns for each row), zmm24-27 codes and then scales, zmm28-31
// activations.
#pragma once

#include <cstdint>

namespace fptq {

namespace {

#define FPTQ_ALL_ZMM                                                                              \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",        \
      "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20",   \
      "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30",   \
      "zmm31"

// X(row, offset of its sums in memory, four sums, address of its activations, register for these)
#define FPTQ_ROWS_3(X, at)                             \
  X("0", 0, 1, 2, 3, at "(%[x])", 28)                  \
  X("256", 4, 5, 6, 7, at "(%[x],%[stride])", 29)      \
  X("512", 8, 9, 10, 11, at "(%[x],%[stride],2)", 30)
#define FPTQ_ROWS_4(X, at) FPTQ_ROWS_3(X, at) X("768", 12, 13, 14, 15, at "(%[x],%[stride3])", 31)
#define FPTQ_ROWS_5(X, at) FPTQ_ROWS_4(X, at) X("1024", 16, 17, 18, 19, at "(%[x],%[stride],4)", 28)
#define FPTQ_ROWS_6(X, at) FPTQ_ROWS_5(X, at) X("1280", 20, 21, 22, 23, at "(%[x],%[stride5])", 29)

#define FPTQ_LOAD(offset, a, b, c, d, address, q)       \
  "vmovups " offset "+0(%[sums]), %%zmm" #a "\n"        \
  "vmovups " offset "+64(%[sums]), %%zmm" #b "\n"       \
  "vmovups " offset "+128(%[sums]), %%zmm" #c "\n"      \
  "vmovups " offset "+192(%[sums]), %%zmm" #d "\n"
#define FPTQ_STORE(offset, a, b, c, d, address, q)      \
  "vmovups %%zmm" #a ", " offset "+0(%[sums])\n"        \
  "vmovups %%zmm" #b ", " offset "+64(%[sums])\n"       \
  "vmovups %%zmm" #c ", " offset "+128(%[sums])\n"      \
  "vmovups %%zmm" #d ", " offset "+192(%[sums])\n"
#define FPTQ_DOT(offset, a, b, c, d, address, q)        \
  "vpbroadcastd " address ", %%zmm" #q "\n"             \
  "vpdpbusd %%zmm" #q ", %%zmm24, %%zmm" #a "\n"        \
  "vpdpbusd %%zmm" #q ", %%zmm25, %%zmm" #b "\n"        \
  "vpdpbusd %%zmm" #q ", %%zmm26, %%zmm" #c "\n"        \
  "vpdpbusd %%zmm" #q ", %%zmm27, %%zmm" #d "\n"
#define FPTQ_SCALE(offset, sum, scale)                                                  \
  "vcvtdq2ps %%zmm" #sum ", %%zmm" #sum "\n"                                            \
  "vfmadd213ps " offset "(%[y]), %%zmm" #scale ", %%zmm" #sum "\n"                      \
  "vmovups %%zmm" #sum ", " offset "(%[y])\n"
#define FPTQ_FINISH(offset, a, b, c, d, address, q)                                     \
  FPTQ_SCALE(offset "+0", a, 24) FPTQ_SCALE(offset "+64", b, 25)                        \
  FPTQ_SCALE(offset "+128", c, 26) FPTQ_SCALE(offset "+192", d, 27)

#define FPTQ_CODES(at, from)                            \
  "vmovups " at "+0(%[" from "]), %%zmm24\n"            \
  "vmovups " at "+64(%[" from "]), %%zmm25\n"           \
  "vmovups " at "+128(%[" from "]), %%zmm26\n"          \
  "vmovups " at "+192(%[" from "]), %%zmm27\n"
#define FPTQ_STEPS(rows)                                \
  FPTQ_ROWS_##rows(FPTQ_LOAD, "")                       \
  ".balign 32\n"                                        \
  "1:\n"                                                \
  FPTQ_CODES("0", "codes")                              \
  FPTQ_ROWS_##rows(FPTQ_DOT, "0")                       \
  FPTQ_CODES("256", "codes")                            \
  FPTQ_ROWS_##rows(FPTQ_DOT, "4")                       \
  "add $8, %[x]\n"                                      \
  "add $512, %[codes]\n"                                \
  "dec %[steps]\n"                                      \
  "jnz 1b\n"

// sums [R, 64] += the dot products of `steps` (at least 1) steps of one byte per code; with kFinish
// y [R, 64] += sums * scales instead, and sums are left as they were.
template <int R, bool kFinish>
void dot_steps(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t steps, int32_t* sums,
               const float* scales, float* y);

#define FPTQ_DEFINE_DOT_STEPS(rows)                                                               \
  template <>                                                                                     \
  inline void dot_steps<rows, false>(const uint8_t* codes, const int8_t* x, int64_t stride,       \
                                     int64_t steps, int32_t* sums, const float*, float*) {        \
    __asm__ volatile(FPTQ_STEPS(rows) FPTQ_ROWS_##rows(FPTQ_STORE, "")                            \
                     : [x] "+r"(x), [codes] "+r"(codes), [steps] "+r"(steps)                      \
                     : [sums] "r"(sums), [stride] "r"(stride), [stride3] "r"(3 * stride),         \
                       [stride5] "r"(5 * stride)                                                  \
                     : "cc", "memory", FPTQ_ALL_ZMM);                                             \
  }                                                                                               \
  template <>                                                                                     \
  inline void dot_steps<rows, true>(const uint8_t* codes, const int8_t* x, int64_t stride,        \
                                    int64_t steps, int32_t* sums, const float* scales,            \
                                    float* y) {                                                   \
    __asm__ volatile(FPTQ_STEPS(rows) FPTQ_CODES("0", "scales")                                   \
                     FPTQ_ROWS_##rows(FPTQ_FINISH, "")                                            \
                     : [x] "+r"(x), [codes] "+r"(codes), [steps] "+r"(steps)                      \
                     : [sums] "r"(sums), [stride] "r"(stride), [stride3] "r"(3 * stride),         \
                       [stride5] "r"(5 * stride), [scales] "r"(scales), [y] "r"(y)                \
                     : "cc", "memory", FPTQ_ALL_ZMM);                                             \
  }

FPTQ_DEFINE_DOT_STEPS(3)
FPTQ_DEFINE_DOT_STEPS(4)
FPTQ_DEFINE_DOT_STEPS(5)
FPTQ_DEFINE_DOT_STEPS(6)

}  // namespace

}  // namespace fptq
