// AVX2: vpmaddubsw multiplies unsigned bytes (weight codes) by signed ones (activations) and adds
// pairs into int16. A pair of 4-bit codes gives at most 2 * 15 * 128 = 3840 in magnitude, so 8 of
// them (4 k-blocks) fit int16 without saturating; then vpmaddwd widens to int32. Codes
// of 8 bits are split into nibbles, two planes, the high one weighted by 16.
//
// A tile is up to 5 rows by 16 columns: 10 sums of pairs, 2 registers of codes, one of activations.
// (A sixth row would need all sixteen registers: GCC 12 then spills.) A single row of 4-bit weights
// takes a whole panel, 8 sums of pairs, straight from the weights: memory should be its limit, and
// unpacking to the first-level cache and back would cost more than its products.
#include "avx2_one_row.h"
#include "avx2_tiles.h"

namespace fptq {

namespace {

constexpr int64_t kFlushKBlocks = 4;
struct Quad {
  int8_t channels[4];
};
constexpr int64_t kPlaneBytes = kPieceKBlocks * kUnpackedBlockBytes;

// Bytes to their low nibbles in one plane and their high ones in the next.
void split_bytes(const uint8_t* blocks, int64_t k_blocks, uint8_t* out) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
  for (int64_t i = 0; i < k_blocks * kPackedBlockBytesW8; i += 32) {
    const __m256i raw = load(blocks + i);
    store(out + i, _mm256_and_si256(raw, low_nibble));
    store(out + kPlaneBytes + i, _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibble));
  }
}

// sums [R, 64] += weight * the products of `k_blocks` (at most kFlushKBlocks) k-blocks.
template <int R>
inline __attribute__((always_inline)) void add_few(const uint8_t* at, const int8_t* x,
                                                   int64_t stride, int64_t k_blocks, __m256i weight,
                                                   int32_t* sums) {
  // The first products are written where the others are added: an instruction less for each. A row
  // is one piece of assembly because GCC 12 broadcasts from registers, on a port that the products
  // need, and copies the sums around.
  __m256i pairs[R][kVectors];
  __m256i low = load(at);
  __m256i high = load(at + 32);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    __asm__(
        "vpbroadcastd %4, %1\n\t"
        "vpmaddubsw %1, %2, %0\n\t"
        "vpmaddubsw %1, %3, %1"
        : "=&x"(pairs[r][0]), "=&x"(pairs[r][1])
        : "x"(low), "x"(high), "m"(*reinterpret_cast<const Quad*>(x + r * stride)));
  }
#pragma GCC unroll 1
  for (int64_t q = 1; q < 2 * k_blocks; ++q) {
    at += kHalfBlockBytes;
    x += 4;
    low = load(at);
    high = load(at + 32);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __m256i quad, product;
      __asm__(
          "vpbroadcastd %6, %2\n\t"
          "vpmaddubsw %2, %4, %3\n\tvpaddw %3, %0, %0\n\t"
          "vpmaddubsw %2, %5, %2\n\tvpaddw %2, %1, %1"
          : "+x"(pairs[r][0]), "+x"(pairs[r][1]), "=&x"(quad), "=&x"(product)
          : "x"(low), "x"(high), "m"(*reinterpret_cast<const Quad*>(x + r * stride)));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      int32_t* sum = sums + r * kNr + 8 * v;
      store(sum, _mm256_add_epi32(load(sum), _mm256_madd_epi16(pairs[r][v], weight)));
    }
  }
}

struct Avx2 {
  static constexpr int64_t kRows = 5;
  static constexpr int64_t kPlanes = 2;

  static const uint8_t* unpack(const uint8_t* blocks, int64_t bits, int64_t k_blocks,
                               uint8_t* out) {
    if (bits == 8) {
      split_bytes(blocks, k_blocks, out);
    } else {
      unpack_nibbles(blocks, k_blocks, out);
    }
    return out;
  }

  template <int R>
  static void add_k_blocks(const uint8_t* codes, int64_t first, int64_t k_blocks, int64_t byte,
                           int64_t bits, const int8_t* x, int64_t stride, int32_t* sums) {
    const uint8_t* at = codes + first * kUnpackedBlockBytes + byte;
    for (int64_t s = 0; s < k_blocks; s += kFlushKBlocks) {
      const int64_t some = k_blocks - s < kFlushKBlocks ? k_blocks - s : kFlushKBlocks;
      if (some == kFlushKBlocks) {  // the loop unrolls
        add_few<R>(at, x, stride, kFlushKBlocks, _mm256_set1_epi16(1), sums);
      } else {
        add_few<R>(at, x, stride, some, _mm256_set1_epi16(1), sums);
      }
      if (bits == 8) add_few<R>(at + kPlaneBytes, x, stride, some, _mm256_set1_epi16(16), sums);
      at += kFlushKBlocks * kUnpackedBlockBytes;
      x += kFlushKBlocks * kKr;
    }
  }

  // The sums of so many k-blocks fit 16 bits.
  static constexpr int64_t kOneRowBlocks = kFlushKBlocks;
  static inline __attribute__((always_inline)) void add_blocks(const uint8_t* block,
                                                               const int8_t* x, int64_t k_blocks,
                                                               int32_t* sums) {
    __m256i pairs[kPanelVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) pairs[v] = _mm256_setzero_si256();
    each_register(block, x, k_blocks, [&](int v, __m256i codes, __m256i quad) {
      pairs[v] = _mm256_add_epi16(pairs[v], _mm256_maddubs_epi16(codes, quad));
    });
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) {
      store(sums + 8 * v, _mm256_add_epi32(load(sums + 8 * v), _mm256_madd_epi16(pairs[v], ones)));
    }
  }
};

}  // namespace

void matmul_w4a8_avx2(const MatMulArgs& args, Range rows, Range panels) {
  if (rows.end - rows.begin == 1) {
    one_row<Avx2>(args, rows.begin, panels);
    return;
  }
  all_panels<Avx2>(args, rows, panels);
}

void matmul_w8a8_avx2(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<Avx2>(args, rows, panels);
}

}  // namespace fptq
