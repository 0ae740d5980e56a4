// NEON with the dot product extension: sdot multiplies 16 signed bytes (4 columns by 4 channels) by
// 4 activations of one row. Codes of 8 bits become signed by taking 128 away.
#include "neon_tiles.h"

namespace fptq {

namespace {

struct Dotprod {
  static int32_t middle(int64_t bits) { return bits == 8 ? 128 : 0; }

  // A block as of 8-bit codes: 4 channels of 64 columns, then the next 4.
  static void unpack(const uint8_t* block, int64_t bits, uint8_t* out) {
    const uint8x16_t sign = vdupq_n_u8(bits == 8 ? 128 : 0);
    for (int64_t v = 0; v < 16; ++v) {
      const Halves codes = load_halves(block, bits, v);
      vst1q_u8(out + 16 * v, veorq_u8(codes.low, sign));
      vst1q_u8(out + kHalfBlockBytes + 16 * v, veorq_u8(codes.high, sign));
    }
  }

  template <int R>
  static void add_k_blocks(const uint8_t* codes, int64_t column, int64_t k_blocks, const int8_t* x,
                           int64_t stride, int32x4_t (&sums)[R][kVectors]) {
    const uint8_t* at = codes + 4 * column;
    for (int64_t s = 0; s < k_blocks; ++s, at += kUnpackedBlockBytes, x += kKr) {
      int8x8_t rows[R];
      for (int r = 0; r < R; ++r) rows[r] = vld1_s8(x + r * stride);
      for (int v = 0; v < kVectors; ++v) {
        const int8x16_t low = vreinterpretq_s8_u8(vld1q_u8(at + 16 * v));
        const int8x16_t high = vreinterpretq_s8_u8(vld1q_u8(at + kHalfBlockBytes + 16 * v));
        for (int r = 0; r < R; ++r) {
          sums[r][v] = vdotq_lane_s32(sums[r][v], low, rows[r], 0);
          sums[r][v] = vdotq_lane_s32(sums[r][v], high, rows[r], 1);
        }
      }
    }
  }
};

}  // namespace

void matmul_w4a8_neon_dotprod(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<Dotprod>(args, rows, panels);
}

void matmul_w8a8_neon_dotprod(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<Dotprod>(args, rows, panels);
}

}  // namespace fptq
