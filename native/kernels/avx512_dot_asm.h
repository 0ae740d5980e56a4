// The inner loop of many rows in assembly, for AVX512-VNNI: compilers (GCC 12) keep 24 accumulators
// in registers only with copies and spills between the instructions that matter, a quarter of the
// speed. In an unnamed namespace like avx512_tiles.h.
//
// vpdpbusd can use two ports, and every other instruction of vectors but loads and stores takes one
// of them away. So a group starts with loads that broadcast, and what other tiles will need is
// fetched here, where the ports of loads have time.
//
// Registers: zmm0-23 sums (4 of 16 columns for each row), zmm24-27 codes and then scales, zmm28 the
// mask of a low nibble, zmm31 activations.
#pragma once

#include <cstdint>

namespace fptq {

namespace {

// Work on groups of the same length, or on a part of one long group: what all tiles have in common.
// The sums of a group start as the low 16 bits of a row's sum times those of minus the zero point.
struct GroupsWork {
  const uint8_t* packed;       // blocks to unpack to `codes` on the way, or null: they are there
  const uint8_t* codes;        // one byte per code; written to where `packed` is given
  int64_t stride;              // of x
  int64_t groups, k_blocks;    // k-blocks of a group; both at least 1
  const uint8_t* prefetch_at;  // memory to fetch, `prefetch_stride` on every half block
  int64_t prefetch_stride;
  int64_t row_sum_bytes;  // from row to row
  const int32_t* zeros;   // minus the zero points, [groups, 64], the upper 16 bits 0
  int64_t same_zeros;     // whether all are zeros[0]
  const float* scales;    // [groups, 64], or null: the sums of the only group are left in `partial`
};

struct TileWork {
  const int8_t* x;
  const int32_t* row_sums;  // of the first group; null: the only group's sums start as `partial`
  int32_t* partial;         // [R, 64]
  float* y;                 // [R, 64], += sums * scales
};

// clang-format off: one instruction in a line of the source.
#define FPTQ_ALL_ZMM                                                                              \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",        \
      "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20",   \
      "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm31"

// X(row, its four sums, address of its activations)
#define FPTQ_ROWS_2(X, at)                     \
  X(0, 0, 1, 2, 3, at "(%[x])")                \
  X(1, 4, 5, 6, 7, at "(%[x],%[stride])")
#define FPTQ_ROWS_3(X, at) FPTQ_ROWS_2(X, at) X(2, 8, 9, 10, 11, at "(%[x],%[stride],2)")
#define FPTQ_ROWS_4(X, at) FPTQ_ROWS_3(X, at) X(3, 12, 13, 14, 15, at "(%[x],%[stride3])")
#define FPTQ_ROWS_5(X, at) FPTQ_ROWS_4(X, at) X(4, 16, 17, 18, 19, at "(%[x],%[stride],4)")
#define FPTQ_ROWS_6(X, at) FPTQ_ROWS_5(X, at) X(5, 20, 21, 22, 23, at "(%[x],%[stride5])")

#define FPTQ_LOAD(row, a, b, c, d, address)             \
  "vmovups 256*" #row "+0(%[at]), %%zmm" #a "\n"        \
  "vmovups 256*" #row "+64(%[at]), %%zmm" #b "\n"       \
  "vmovups 256*" #row "+128(%[at]), %%zmm" #c "\n"      \
  "vmovups 256*" #row "+192(%[at]), %%zmm" #d "\n"
#define FPTQ_STORE(row, a, b, c, d, address)            \
  "vmovups %%zmm" #a ", 256*" #row "+0(%[at])\n"        \
  "vmovups %%zmm" #b ", 256*" #row "+64(%[at])\n"       \
  "vmovups %%zmm" #c ", 256*" #row "+128(%[at])\n"      \
  "vmovups %%zmm" #d ", 256*" #row "+192(%[at])\n"
#define FPTQ_NEXT_ROW_SUM "add %[row_sum_bytes], %[at]\n"
#define FPTQ_MULTIPLY_ROW_SUM(sum, zeros)                                               \
  "vpxord %%zmm" #sum ", %%zmm" #sum ", %%zmm" #sum "\n"                                \
  "vpdpwssd (%[at])%{1to16%}, %%zmm" #zeros ", %%zmm" #sum "\n"
#define FPTQ_START_SAME(row, a, b, c, d, address)       \
  FPTQ_MULTIPLY_ROW_SUM(a, 24)                          \
  "vmovdqa64 %%zmm" #a ", %%zmm" #b "\n"                \
  "vmovdqa64 %%zmm" #a ", %%zmm" #c "\n"                \
  "vmovdqa64 %%zmm" #a ", %%zmm" #d "\n" FPTQ_NEXT_ROW_SUM
#define FPTQ_START(row, a, b, c, d, address)                    \
  FPTQ_MULTIPLY_ROW_SUM(a, 24) FPTQ_MULTIPLY_ROW_SUM(b, 25)     \
  FPTQ_MULTIPLY_ROW_SUM(c, 26) FPTQ_MULTIPLY_ROW_SUM(d, 27) FPTQ_NEXT_ROW_SUM
#define FPTQ_DOT(row, a, b, c, d, address)              \
  "vpbroadcastd " address ", %%zmm31\n"                 \
  "vpdpbusd %%zmm31, %%zmm24, %%zmm" #a "\n"            \
  "vpdpbusd %%zmm31, %%zmm25, %%zmm" #b "\n"            \
  "vpdpbusd %%zmm31, %%zmm26, %%zmm" #c "\n"            \
  "vpdpbusd %%zmm31, %%zmm27, %%zmm" #d "\n"
#define FPTQ_SCALE(row, column, sum, scale)                                             \
  "vcvtdq2ps %%zmm" #sum ", %%zmm" #sum "\n"                                            \
  "vfmadd213ps 256*" #row "+" #column "(%[at]), %%zmm" #scale ", %%zmm" #sum "\n"       \
  "vmovups %%zmm" #sum ", 256*" #row "+" #column "(%[at])\n"
#define FPTQ_FINISH(row, a, b, c, d, address)                                           \
  FPTQ_SCALE(row, 0, a, 24) FPTQ_SCALE(row, 64, b, 25)                                  \
  FPTQ_SCALE(row, 128, c, 26) FPTQ_SCALE(row, 192, d, 27)

#define FPTQ_CODES(at, from)                            \
  "vmovups " at "+0(%[" from "]), %%zmm24\n"            \
  "vmovups " at "+64(%[" from "]), %%zmm25\n"           \
  "vmovups " at "+128(%[" from "]), %%zmm26\n"          \
  "vmovups " at "+192(%[" from "]), %%zmm27\n"
#define FPTQ_KEEP_CODES(at)                             \
  "vmovups %%zmm24, " at "+0(%[codes])\n"               \
  "vmovups %%zmm25, " at "+64(%[codes])\n"              \
  "vmovups %%zmm26, " at "+128(%[codes])\n"             \
  "vmovups %%zmm27, " at "+192(%[codes])\n"
#define FPTQ_LOW_NIBBLES                                \
  "vpandd 0(%[packed]), %%zmm28, %%zmm24\n"             \
  "vpandd 64(%[packed]), %%zmm28, %%zmm25\n"            \
  "vpandd 128(%[packed]), %%zmm28, %%zmm26\n"           \
  "vpandd 192(%[packed]), %%zmm28, %%zmm27\n"
#define FPTQ_HIGH_NIBBLES                               \
  "vpsrlw $4, 0(%[packed]), %%zmm24\n"                  \
  "vpsrlw $4, 64(%[packed]), %%zmm25\n"                 \
  "vpsrlw $4, 128(%[packed]), %%zmm26\n"                \
  "vpsrlw $4, 192(%[packed]), %%zmm27\n"                \
  "vpandd %%zmm24, %%zmm28, %%zmm24\n"                  \
  "vpandd %%zmm25, %%zmm28, %%zmm25\n"                  \
  "vpandd %%zmm26, %%zmm28, %%zmm26\n"                  \
  "vpandd %%zmm27, %%zmm28, %%zmm27\n"
#define FPTQ_PREFETCH "prefetcht1 (%[prefetch_at])\n add %[prefetch_stride], %[prefetch_at]\n"
#define FPTQ_NEXT_K_BLOCK "add $8, %[x]\n add $512, %[codes]\n dec %[left]\n"

// A group begins: its sums from those of its rows, at `at`. Goes on at label 3, or after itself.
#define FPTQ_BEGIN_GROUP(rows)                                                          \
  "addq $4, %[row_sums]\n mov %[zeros], %[scratch]\n"                                   \
  "cmpq $0, %[same_zeros]\n je 1f\n"                                                    \
  "vpbroadcastd (%[scratch]), %%zmm24\n" FPTQ_ROWS_##rows(FPTQ_START_SAME, "") "jmp 3f\n" \
  "1: addq $256, %[zeros]\n"                                                            \
  FPTQ_CODES("0", "scratch") FPTQ_ROWS_##rows(FPTQ_START, "")

// Label 3: all k-blocks of a group, unpacked on the way or before; goes on at label 6.
#define FPTQ_DOT_GROUP(rows)                                                            \
  "3: test %[packed], %[packed]\n jz 5f\n"                                              \
  ".balign 64\n"                                                                        \
  "4:\n"                                                                                \
  FPTQ_LOW_NIBBLES FPTQ_KEEP_CODES("0") FPTQ_PREFETCH FPTQ_ROWS_##rows(FPTQ_DOT, "0")      \
  FPTQ_HIGH_NIBBLES FPTQ_KEEP_CODES("256") FPTQ_PREFETCH FPTQ_ROWS_##rows(FPTQ_DOT, "4")   \
  "add $256, %[packed]\n" FPTQ_NEXT_K_BLOCK "jnz 4b\n jmp 6f\n"                            \
  ".balign 64\n"                                                                        \
  "5:\n"                                                                                \
  FPTQ_CODES("0", "codes") FPTQ_PREFETCH FPTQ_ROWS_##rows(FPTQ_DOT, "0")                   \
  FPTQ_CODES("256", "codes") FPTQ_PREFETCH FPTQ_ROWS_##rows(FPTQ_DOT, "4")                 \
  FPTQ_NEXT_K_BLOCK "jnz 5b\n"

#define FPTQ_ADD_GROUPS(rows)                                                           \
  "vpbroadcastd %[nibble], %%zmm28\n"                                                   \
  "0: mov %[k_blocks], %[left]\n"                                                          \
  "mov %[row_sums], %[at]\n test %[at], %[at]\n jz 2f\n"                                \
  FPTQ_BEGIN_GROUP(rows) "jmp 3f\n"                                                     \
  "2: mov %[partial], %[at]\n" FPTQ_ROWS_##rows(FPTQ_LOAD, "")                          \
  FPTQ_DOT_GROUP(rows)                                                                  \
  "6: mov %[scales], %[scratch]\n test %[scratch], %[scratch]\n jz 7f\n"                \
  "addq $256, %[scales]\n mov %[y], %[at]\n"                                            \
  FPTQ_CODES("0", "scratch") FPTQ_ROWS_##rows(FPTQ_FINISH, "")                          \
  "decq %[groups]\n jnz 0b\n jmp 8f\n"                                                  \
  "7: mov %[partial], %[at]\n" FPTQ_ROWS_##rows(FPTQ_STORE, "")                         \
  "8:\n"

// X(row, its four sums, the four of y that they are added to)
#define FPTQ_KEPT_2(X) X(0, 0, 1, 2, 3, 12, 13, 14, 15) X(1, 4, 5, 6, 7, 16, 17, 18, 19)
#define FPTQ_KEPT_3(X) FPTQ_KEPT_2(X) X(2, 8, 9, 10, 11, 20, 21, 22, 23)
#define FPTQ_KEPT_LOAD(row, a, b, c, d, e, f, g, h) FPTQ_LOAD(row, e, f, g, h, "")
#define FPTQ_KEPT_STORE(row, a, b, c, d, e, f, g, h) FPTQ_STORE(row, e, f, g, h, "")
#define FPTQ_KEPT_SCALE(sum, scale, y)                  \
  "vcvtdq2ps %%zmm" #sum ", %%zmm" #sum "\n"            \
  "vfmadd231ps %%zmm" #sum ", %%zmm" #scale ", %%zmm" #y "\n"
#define FPTQ_KEPT_FINISH(row, a, b, c, d, e, f, g, h)   \
  FPTQ_KEPT_SCALE(a, 24, e) FPTQ_KEPT_SCALE(b, 25, f)   \
  FPTQ_KEPT_SCALE(c, 26, g) FPTQ_KEPT_SCALE(d, 27, h)

// The same for whole groups, with y in registers from the first to the last of them.
#define FPTQ_ADD_GROUPS_KEPT(rows)                                                      \
  "vpbroadcastd %[nibble], %%zmm28\n mov %[y], %[at]\n" FPTQ_KEPT_##rows(FPTQ_KEPT_LOAD) \
  "0: mov %[k_blocks], %[left]\n mov %[row_sums], %[at]\n"                                 \
  FPTQ_BEGIN_GROUP(rows)                                                                \
  FPTQ_DOT_GROUP(rows)                                                                            \
  "6: mov %[scales], %[scratch]\n addq $256, %[scales]\n"                                         \
  FPTQ_CODES("0", "scratch") FPTQ_KEPT_##rows(FPTQ_KEPT_FINISH)                                   \
  "decq %[groups]\n jnz 0b\n mov %[y], %[at]\n" FPTQ_KEPT_##rows(FPTQ_KEPT_STORE)

// Does the work for a tile of R rows.
template <int R>
void add_groups(const GroupsWork& work, const TileWork& tile);
template <int R>
void add_groups_kept(const GroupsWork& work, const TileWork& tile);

#define FPTQ_DEFINE(function, text, rows)                                                         \
  template <>                                                                                     \
  inline void function<rows>(const GroupsWork& work, const TileWork& tile) {                      \
    static const int32_t nibble = 0x0f0f0f0f;                                                     \
    const uint8_t* packed = work.packed;                                                          \
    const uint8_t* codes = work.codes;                                                            \
    const int8_t* x = tile.x;                                                                     \
    const uint8_t* prefetch_at = work.prefetch_at;                                                \
    int64_t groups = work.groups;                                                                 \
    const int32_t* row_sums = tile.row_sums;                                                      \
    const int32_t* zeros = work.zeros;                                                            \
    const float* scales = work.scales;                                                            \
    const void* at;                                                                               \
    const void* scratch;                                                                          \
    int64_t left;                                                                                 \
    __asm__ volatile(text(rows)                                                                   \
                     : [x] "+r"(x), [codes] "+r"(codes), [packed] "+r"(packed),                   \
                       [prefetch_at] "+r"(prefetch_at), [left] "=&r"(left), [at] "=&r"(at),       \
                       [scratch] "=&r"(scratch), [groups] "+m"(groups),                           \
                       [row_sums] "+m"(row_sums), [zeros] "+m"(zeros), [scales] "+m"(scales)      \
                     : [stride] "r"(work.stride), [stride3] "r"(3 * work.stride),                 \
                       [stride5] "r"(5 * work.stride),                                            \
                       [prefetch_stride] "r"(work.prefetch_stride), [k_blocks] "m"(work.k_blocks),\
                       [row_sum_bytes] "m"(work.row_sum_bytes), [partial] "m"(tile.partial),      \
                       [same_zeros] "m"(work.same_zeros), [y] "m"(tile.y), [nibble] "m"(nibble)   \
                     : "cc", "memory", FPTQ_ALL_ZMM);                                             \
  }

// clang-format on

FPTQ_DEFINE(add_groups, FPTQ_ADD_GROUPS, 2)
FPTQ_DEFINE(add_groups, FPTQ_ADD_GROUPS, 3)
FPTQ_DEFINE(add_groups, FPTQ_ADD_GROUPS, 4)
FPTQ_DEFINE(add_groups, FPTQ_ADD_GROUPS, 5)
FPTQ_DEFINE(add_groups, FPTQ_ADD_GROUPS, 6)
FPTQ_DEFINE(add_groups_kept, FPTQ_ADD_GROUPS_KEPT, 2)
FPTQ_DEFINE(add_groups_kept, FPTQ_ADD_GROUPS_KEPT, 3)

}  // namespace

}  // namespace fptq
