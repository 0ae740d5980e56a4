// What a kernel file implements and what the op calls. Types only: code shared between files that
// are compiled for different instruction sets would be merged by the linker (one definition rule),
// and the merged copy may hold instructions that the CPU lacks.
#pragma once

#include <cstdint>

#include "attention.h"

namespace fptq {

// The weight layout, version 1 (fptq_onnx/numerics/panels.py, docs/kernels.md), in the words of
// BLIS and XNNPACK. A panel is nr columns of the weights. It is stored as packed blocks of nr
// columns by kr channels each, one after another along K; "k-block" counts kr channels of a panel
// or of a row of activations. A group, which shares a scale, is a whole number of k-blocks.
constexpr int64_t kNr = 64;
constexpr int64_t kKr = 8;
constexpr int64_t kPackedBlockBytesW4 = kNr * kKr / 2;
constexpr int64_t kPackedBlockBytesW8 = kNr * kKr;
// One byte per code: the first 4 channels of a block take so many bytes, then come the other 4.
constexpr int64_t kHalfBlockBytes = kPackedBlockBytesW8 / 2;

// Instruction sets a kernel may need; cpu_features() returns those of this CPU and OS.
enum Feature : uint32_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kF16c = 1u << 2,
  kAvx512 = 1u << 3,  // F, BW, DQ and VL together
  kAvx512Vnni = 1u << 4,
  kAvxVnni = 1u << 5,
  kAmxInt8 = 1u << 6,  // and AMX-TILE, and the system's permission to use tiles
  kNeonDotprod = 1u << 7,
  kNeonI8mm = 1u << 8,
};

// Where an activation or output element is float16; else float32.
enum class Element : uint8_t { kFloat32, kFloat16 };

// The int8 form of M rows of activations. The rows of `codes` are `stride` bytes apart (at least
// kKr * k_blocks) and zero from channel K on; kRowSlack bytes after the last row may be read.
constexpr int64_t kRowSlack = 64;
struct QuantizedRows {
  int8_t* codes;
  int32_t* group_sums;  // [M, groups]: the sum of the codes of each group
  float* scales;        // [M]; NaN marks a row whose outputs must all be NaN
  int64_t stride;
};

// The weights of one linear, all in the model's own memory; no pointer has to be aligned to
// anything.
struct PackedWeights {
  const uint8_t* blocks;       // [panels, k_blocks, kNr * bits]
  const uint8_t* scales;       // [panels, groups, 64], each of `scale_bytes`
  const uint8_t* zero_points;  // [panels, groups, 64], or null: 8 (of 4 bits), 128 (of 8)
  const float* bias;           // [n], or null
  int64_t bits;                // of a code: 4 or 8
  int64_t scale_bytes;         // 4: float32; 2: float16
  int64_t k, n;
  int64_t panels, k_blocks, groups;
  int64_t group_k_blocks;  // per group; the last group may be shorter
};

struct QuantizeArgs {
  const void* input;  // [M, k]
  Element element;
  int64_t k, k_blocks, groups, group_k_blocks;
  bool per_token;
  float static_scale;  // used when not per_token
  QuantizedRows rows;
};

struct MatMulArgs {
  PackedWeights weights;
  QuantizedRows rows;
  void* output;           // row r begins `output_stride` elements after row r - 1
  int64_t output_stride;  // at least n
  Element element;
};

// A range of rows (and panels), so that a caller can give parts to threads.
struct Range {
  int64_t begin, end;
};

// What happens to the gate of a gated MLP before it is multiplied with the other half.
enum class Gate : uint8_t { kNone, kSilu, kGeluTanh };

// SwiGLU, or GeGLU: output[i] = function(gate[i]) * up[i] for i < count, as
// fptq_onnx/numerics/gated.py defines it.
struct SwigluArgs {
  const float* gate;
  const float* up;
  void* output;
  int64_t count;
  Gate function;
  Element element;
};

// Multiplies a range of rows by a range of panels.
using MatMul = void(const MatMulArgs& args, Range rows, Range panels);

// What one instruction set has for every operation; dispatch.cc fills it in, field by field.
struct Kernel {
  const char* name = nullptr;  // for FPTQ_FORCE_KERNEL
  uint32_t features = 0;       // the bits of Feature that it needs
  // Rows are given out in multiples of row_tile, at most rows_per_task together: few enough that
  // their codes stay in the second-level cache while panel after panel passes by.
  int64_t row_tile = 1;
  int64_t rows_per_task = 1;
  // A linear: activations to int8, then their product with weights of 4 or of 8 bits.
  void (*quantize)(const QuantizeArgs& args, Range rows) = nullptr;
  MatMul* matmul_w4a8 = nullptr;
  MatMul* matmul_w8a8 = nullptr;
  void (*swiglu)(const SwigluArgs& args) = nullptr;
  // Attention.
  void (*rope)(const RopeArgs& args) = nullptr;
  void (*quantize_kv)(const QuantizeKvArgs& args) = nullptr;
  void (*attention)(const AttentionTask& task) = nullptr;
};

// The scale of a row whose largest |x|, as the bits of a float32, is given (a NaN counts as the
// largest): NaN for a row that has no int8 form, 0 for one that counts as zero. The codes of both
// are all 0. Every quantize function uses it, so that no file has its own idea of the edge cases.
float row_scale(const QuantizeArgs& args, uint32_t absmax_bits);

// Whether to use the tuning for AMD's CPUs; true on them. Weights for few rows are fetched into the
// first-level cache there (a quarter faster on Zen 4; Intel's have too few line fill buffers, and
// want the second level), and many rows are worked on in smaller tiles. A reference, so that tests
// try both.
bool& tuned_for_amd();

// One declaration per function that a kernel file defines; dispatch.cc has the table. Those of
// attention are in attention.h.
void quantize_scalar(const QuantizeArgs& args, Range rows);
void quantize_avx2(const QuantizeArgs& args, Range rows);
void quantize_avx512(const QuantizeArgs& args, Range rows);
void quantize_neon(const QuantizeArgs& args, Range rows);
MatMul matmul_w4a8_scalar;
MatMul matmul_w8a8_scalar;
MatMul matmul_w4a8_avx2;
MatMul matmul_w8a8_avx2;
MatMul matmul_w4a8_avxvnni;
MatMul matmul_w8a8_avxvnni;
MatMul matmul_w4a8_avx512vnni;
MatMul matmul_w8a8_avx512vnni;
MatMul matmul_w4a8_amx;
MatMul matmul_w8a8_amx;
MatMul matmul_w4a8_neon_dotprod;
MatMul matmul_w8a8_neon_dotprod;
MatMul matmul_w4a8_neon_i8mm;
MatMul matmul_w8a8_neon_i8mm;
void swiglu_scalar(const SwigluArgs& args);
void swiglu_avx2(const SwigluArgs& args);
void swiglu_neon(const SwigluArgs& args);

}  // namespace fptq
