// NEON with the int8 matrix extension: usmmla multiplies 2 columns by 8 channels of unsigned codes
// with 2 rows by 8 channels of signed activations, twice what sdot does in the same time.
#include "neon_tiles.h"

namespace fptq {

namespace {

struct I8mm {
  static int32_t middle(int64_t) { return 0; }

  // Pairs of columns, 8 channels each: 32 times 16 bytes.
  static void unpack(const uint8_t* block, int64_t bits, uint8_t* out) {
    for (int64_t v = 0; v < 16; ++v) {
      const Halves codes = load_halves(block, bits, v);
      const uint32x4_t low = vreinterpretq_u32_u8(codes.low);
      const uint32x4_t high = vreinterpretq_u32_u8(codes.high);
      vst1q_u8(out + 32 * v, vreinterpretq_u8_u32(vzip1q_u32(low, high)));
      vst1q_u8(out + 32 * v + 16, vreinterpretq_u8_u32(vzip2q_u32(low, high)));
    }
  }

  template <int R>
  static void add_k_blocks(const uint8_t* codes, int64_t column, int64_t k_blocks, const int8_t* x,
                           int64_t stride, int32x4_t (&sums)[R][kVectors]) {
    constexpr int kPairs = (R + 1) / 2;  // a last single row is paired with itself
    const uint8_t* at = codes + 8 * column;
    int32x4_t acc[kPairs][2 * kVectors];  // column, row: 00 01 10 11
    for (int p = 0; p < kPairs; ++p) {
      for (int v = 0; v < 2 * kVectors; ++v) acc[p][v] = vdupq_n_s32(0);
    }
    for (int64_t s = 0; s < k_blocks; ++s, at += kUnpackedBlockBytes, x += kKr) {
      int8x16_t rows[kPairs];
      for (int p = 0; p < kPairs; ++p) {
        const int second = 2 * p + 1 < R ? 2 * p + 1 : 2 * p;
        rows[p] = vcombine_s8(vld1_s8(x + 2 * p * stride), vld1_s8(x + second * stride));
      }
      for (int v = 0; v < 2 * kVectors; ++v) {
        const uint8x16_t pair = vld1q_u8(at + 16 * v);
        for (int p = 0; p < kPairs; ++p) acc[p][v] = vusmmlaq_s32(acc[p][v], pair, rows[p]);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      for (int p = 0; p < kPairs; ++p) {
        const int32x4_t first = acc[p][2 * v];
        const int32x4_t second = acc[p][2 * v + 1];
        sums[2 * p][v] = vaddq_s32(sums[2 * p][v], vuzp1q_s32(first, second));
        if (2 * p + 1 < R) {
          sums[2 * p + 1][v] = vaddq_s32(sums[2 * p + 1][v], vuzp2q_s32(first, second));
        }
      }
    }
  }
};

}  // namespace

void matmul_w4a8_neon_i8mm(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<I8mm>(args, rows, panels);
}

void matmul_w8a8_neon_i8mm(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<I8mm>(args, rows, panels);
}

}  // namespace fptq
