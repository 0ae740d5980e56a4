// The op fptq::MatMulW4A8 for one element type of A and Y.
#pragma once

#include "kernel.h"
#include "ort_abi.h"

namespace fptq {

// The op with A and Y of `element`; lives as long as the library.
const ort::CustomOp* matmul_w4a8_op(Element element);

}  // namespace fptq
