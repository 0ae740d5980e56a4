// Attention with AVX2 and FMA: see attention_tiles.h.
#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 8;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

void attention_avx2(const AttentionTask& task) { attend(task); }

void rotate_avx2(const RotateArgs& args) { rotated(args); }

void encode_avx2(const EncodeArgs& args) { encoded(args); }

}  // namespace fptq
