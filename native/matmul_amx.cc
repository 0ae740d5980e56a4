// AMX-INT8: one tile instruction multiplies 16 rows by 64 channels with 64 channels by 16 columns,
// signed activations and unsigned codes, and adds to a 16 x 16 tile of int32.
//
// The unpacked form of the layout is what it wants: 4 channels of a column in a 32-bit lane, 16
// columns in 64 bytes, 4 channels further in the next row, 256 bytes on. Scales differ by group and
// column, so the int32 tiles of each group go through memory into float sums. That is as much work
// as the tile instructions themselves, hence groups should not be short.
//
// The eight tile registers: 0-3 sums (2 x 16 rows by 2 x 16 columns), 4-5 rows, 6-7 columns.
#include "kernel.h"

namespace fptq {

void matmul_amx(const MatMulArgs& args, Range rows, Range panels) {
  matmul_avx512vnni(args, rows, panels);
}

}  // namespace fptq
