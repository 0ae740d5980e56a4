// What an attention kernel file implements and what the op calls. Types only, like kernel.h.
#pragma once

#include <cstdint>

namespace fptq {

// Keys are processed in blocks of kAttentionKeys. Matrix products have a multiple of
// kAttentionLanes columns; rows are padded to that.
constexpr int64_t kAttentionKeys = 64;
constexpr int64_t kAttentionLanes = 16;

// RoPE of one vector of a head: output = scale * rotated(input).
// fptq_onnx/numerics/attention.py defines it.
struct RopeArgs {
  const float* input;
  float* output;     // may be the input
  const float* cos;  // [rotary / 2] of the position, or null: not rotated
  const float* sin;
  int64_t size, rotary;  // elements of the head, and how many of them are rotated
  bool interleaved;      // pairs are neighbours; else they are rotary / 2 apart
  float scale;
  const float* channels;  // [size], factors of the result, or null
};

// Quantizes keys or values for the cache: round(x * reciprocal), half to even, from -128 to 127,
// and 127 for NaN, as ONNX Runtime does it; fptq_onnx/numerics/cache_codes.py defines it.
struct QuantizeKvArgs {
  const float* input;
  const float* reciprocals;  // [count], one over the scale of each channel
  int8_t* output;
  int64_t count;
};

// Causal attention of the query heads that share one key and value head, for a range of positions.
// Row r is head r % group of position r / group, and sees the first `seen + r / group` keys.
struct AttentionTask {
  const float* q;  // [rows, size], rotated and scaled
  const void* k;   // [at least the keys of the last row, size]: floats, or int8 codes
  const void* v;   // the same
  // [size], scales of the codes of v, or null: floats. (Those of k are factors of q.)
  const float* v_scales;
  float* output;   // row r at (r / group) * output_stride + (r % group) * size
  float* scratch;  // attention_scratch(rows, size) floats, aligned to 64 bytes
  int64_t rows, group, size, seen;
  int64_t output_stride;
};

constexpr int64_t attention_padded(int64_t size) {
  return (size + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
}

// Keys as floats and transposed, values with padded rows, and a sum for every row.
constexpr int64_t attention_scratch(int64_t rows, int64_t size) {
  return 2 * kAttentionKeys * size + (kAttentionKeys + rows) * attention_padded(size) + 2 * rows +
         32;
}

void rope_scalar(const RopeArgs& args);
void rope_avx2(const RopeArgs& args);
void rope_avx512(const RopeArgs& args);
void rope_neon(const RopeArgs& args);
void quantize_kv_scalar(const QuantizeKvArgs& args);
void quantize_kv_avx2(const QuantizeKvArgs& args);
void quantize_kv_avx512(const QuantizeKvArgs& args);
void quantize_kv_neon(const QuantizeKvArgs& args);
void attention_scalar(const AttentionTask& task);
void attention_avx2(const AttentionTask& task);
void attention_avx512(const AttentionTask& task);
void attention_neon(const AttentionTask& task);

}  // namespace fptq
