// Attention with NEON: see attention_tiles.h.
#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 4;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

void attention_neon(const AttentionTask& task) { attend(task); }

void rotate_neon(const RotateArgs& args) { rotated(args); }

void encode_neon(const EncodeArgs& args) { encoded(args); }

}  // namespace fptq
