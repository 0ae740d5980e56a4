// AVX-VNNI: vpdpbusd in 256-bit registers, for CPUs without AVX-512.
//
// A tile is up to 6 rows by 16 columns: 12 sums, 2 registers of codes, one of activations, of 16. A
// single row of 4-bit weights takes a whole panel, 8 sums, straight from the weights: see
// avx2_one_row.h.
#include "avx2_one_row.h"
#include "avx2_tiles.h"

namespace fptq {

namespace {

// Pinned, in the VEX encoding; compilers may choose EVEX or copy sums around.
inline __attribute__((always_inline)) void dot(__m256i& sums, __m256i codes, __m256i x) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
}

struct AvxVnni {
  static constexpr int64_t kRows = 6;
  static constexpr int64_t kPlanes = 1;

  static const uint8_t* unpack(const uint8_t* blocks, int64_t bits, int64_t k_blocks,
                               uint8_t* out) {
    if (bits == 8) return blocks;
    unpack_nibbles(blocks, k_blocks, out);
    return out;
  }

  // sums [R, 64] += codes of `k_blocks` k-blocks * activations of R rows, for two registers of
  // columns.
  template <int R>
  static void add_k_blocks(const uint8_t* codes, int64_t first, int64_t k_blocks, int64_t byte,
                           int64_t, const int8_t* x, int64_t stride, int32_t* sums) {
    const uint8_t* at = codes + first * kUnpackedBlockBytes + byte;
    __m256i acc[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = load(sums + r * kNr + 8 * v);
    }
    for (int64_t q = 0; q < 2 * k_blocks; ++q, at += kHalfBlockBytes, x += 4) {
      const __m256i low = load(at);
      const __m256i high = load(at + 32);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i quad = broadcast_quad(x + r * stride);
        dot(acc[r][0], low, quad);
        dot(acc[r][1], high, quad);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(sums + r * kNr + 8 * v, acc[r][v]);
    }
  }

  static constexpr int64_t kOneRowBlocks = 16;  // a group of 128 channels
  static inline __attribute__((always_inline)) void add_blocks(const uint8_t* block,
                                                               const int8_t* x, int64_t k_blocks,
                                                               int32_t* sums) {
    __m256i acc[kPanelVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) acc[v] = load(sums + 8 * v);
    each_register(block, x, k_blocks,
                  [&](int v, __m256i codes, __m256i quad) { dot(acc[v], codes, quad); });
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) store(sums + 8 * v, acc[v]);
  }
};

}  // namespace

void matmul_w4a8_avxvnni(const MatMulArgs& args, Range rows, Range panels) {
  if (rows.end - rows.begin == 1) {
    one_row<AvxVnni>(args, rows.begin, panels);
    return;
  }
  all_panels<AvxVnni>(args, rows, panels);
}

void matmul_w8a8_avxvnni(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<AvxVnni>(args, rows, panels);
}

}  // namespace fptq
