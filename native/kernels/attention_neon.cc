// Attention with NEON: see attention_tiles.h.
#include <arm_neon.h>

#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 4;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

namespace {

inline Floats load_floats(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, sizeof(four));
  const int16x8_t pairs = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return static_cast<Floats>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(pairs))));
}

}  // namespace

void attention_neon(const AttentionTask& task) { attend(task); }

void rope_neon(const RopeArgs& args) { apply_rope(args); }

void quantize_kv_neon(const QuantizeKvArgs& args) { quantize_values(args); }

}  // namespace fptq
