// Attention with what every CPU of its kind has: see attention_tiles.h.
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
  return Floats{float(codes[0]), float(codes[1]), float(codes[2]), float(codes[3])};
}

}  // namespace

void attention_scalar(const AttentionTask& task) { attend(task); }

void rope_scalar(const RopeArgs& args) { apply_rope(args); }

void quantize_kv_scalar(const QuantizeKvArgs& args) { quantize_values(args); }

}  // namespace fptq
