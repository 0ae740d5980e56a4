// Attention with AVX-512: see attention_tiles.h.
#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 16;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

void attention_avx512(const AttentionTask& task) { attend(task); }

void rotate_avx512(const RotateArgs& args) { rotated(args); }

void encode_avx512(const EncodeArgs& args) { encoded(args); }

}  // namespace fptq
