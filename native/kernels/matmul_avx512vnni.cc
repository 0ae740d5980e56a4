// AVX512-VNNI: vpdpbusd multiplies 64 unsigned bytes (weight codes) by 64 signed ones (activations)
// and adds groups of four into 16 int32 lanes.
//
// A tile is up to 6 rows by 64 columns: 24 accumulators, 4 registers of codes, one of activations:
// 29 of 32. 24 independent accumulators also hide vpdpbusd's latency of 5 cycles at two per cycle.
// Or it is 3 rows, whose float sums have registers of their own.
//
// Unpacking nibbles uses the execution ports that vpdpbusd needs (12 instructions per 48 of them),
// so for many rows the first tile that works on a piece of a panel also leaves it unpacked in the
// first-level cache, for the other tiles. For few rows, where memory is the limit, each tile
// unpacks for itself.
#include "avx512_dot_asm.h"
#include "avx512_pieces.h"
#include "avx512_tiles.h"

namespace fptq {

namespace {

// How far behind the end of a piece fetching from memory begins while it is worked on: what is
// nearer was fetched before.
constexpr int64_t kPiecePrefetchDistance = 2048;
// Rows that share an unpacked piece. Their sums take 33 KiB, twice where groups are long, which is
// more than the first-level cache has left; unpacking for fewer rows each would cost more.
constexpr int64_t kSharedRows = 132;

// Few rows (M up to 6): one tile, which unpacks nibbles in registers, straight from the weights.
template <int R, int kBits, PrefetchHint kHint>
void small_m(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  constexpr int64_t kBytes = kBits == 8 ? kPackedBlockBytesW8 : kPackedBlockBytesW4;
  const uint8_t* blocks = w.blocks + panel * w.k_blocks * kBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;
  const int64_t prefetch_distance = scales_prefetch_distance(w);  // in groups
  alignas(64) float y[R * kNr];
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_k_blocks;
    const int64_t left = w.k_blocks - first;
    Accumulators<R> acc;
    prefetch_scales<kHint>(w, panel, g + prefetch_distance);
    start_group<R>(w, sums, panel, g, acc);
    const int64_t k_blocks = left < w.group_k_blocks ? left : w.group_k_blocks;
    const uint8_t* group = blocks + first * kBytes;
    if (kBits == 8) {
      dot_w8<R, kHint>(group, x + first * kKr, args.rows.stride, k_blocks, acc);
    } else {
      dot_w4<R, kHint>(group, x + first * kKr, args.rows.stride, k_blocks, acc);
    }
    finish_group<R>(w, panel, g, acc, y);
  }
  store_rows(args, {row, row + R}, panel, y);
}

// Rows that are worked on together, and their sums.
struct Tile {
  Range rows;
  float* y;
  int32_t* partial;
};

// Adds a piece to the sums of R rows: complete groups to y, a part of a longer one to `partial`. No
// divisions: what stands between two tiles must be done before vpdpbusd has nothing left to do.
template <int R>
__attribute__((noinline)) void add_piece(const MatMulArgs& args, const Piece& piece,
                                         const Tile& tile) {
  const PackedWeights& w = args.weights;
  const int32_t* row_sums = args.rows.group_sums + tile.rows.begin * w.groups;
  const TileWork work = {
      args.rows.codes + tile.rows.begin * args.rows.stride + piece.k_blocks.begin * kKr,
      piece.whole ? row_sums + piece.group : nullptr, tile.partial, tile.y};
  // The sums of the next tile's rows are that many lines of cache.
  for (int64_t r = R; r < 2 * R; ++r) __builtin_prefetch(row_sums + r * w.groups + piece.group);
  if (piece.begins) start_partial<R>(w, row_sums, piece.panel, piece.group, tile.partial);
  if constexpr (R <= kKept.rows) {
    if (piece.keeps) {
      add_groups_kept<R>(piece.work, work);
      return;
    }
  }
  add_groups<R>(piece.work, work);
}

// The same for a tile of any height.
inline __attribute__((always_inline)) void add_tile(const MatMulArgs& args, const Piece& piece,
                                                    const Tile& tile) {
  switch (tile.rows.end - tile.rows.begin) {
    case 6: add_piece<6>(args, piece, tile); break;
    case 5: add_piece<5>(args, piece, tile); break;
    case 4: add_piece<4>(args, piece, tile); break;
    case 3: add_piece<3>(args, piece, tile); break;
    case 2: add_piece<2>(args, piece, tile); break;
    default: break;  // more rows than a tile has make no smaller one
  }
}

// Cuts rows into tiles of equal height, whose sums are in `y` and `partial`; returns their number.
// 16 rows are 6 + 5 + 5, because a last tile of few rows runs slowly.
inline __attribute__((always_inline)) int64_t cut_rows(const PackedWeights& w, Range rows,
                                                       int64_t height, float* y, int32_t* partial,
                                                       Tile* out) {
  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + height - 1) / height;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * count / tiles;
    out[t].rows = {rows.begin + first, rows.begin + (t + 1) * count / tiles};
    out[t].y = y + first * kNr;
    // Whole groups leave nothing behind: their tiles share the same memory, which stays in cache.
    out[t].partial = partial + (w.group_k_blocks > kWholeGroupKBlocks ? first * kNr : 0);
  }
  return tiles;
}

// Where a piece is read from: 4-bit codes are unpacked to `codes` by its first tile. The next piece
// (or panel) comes from memory meanwhile, an equal share with every tile.
inline __attribute__((always_inline)) void set_source(const PackedWeights& w, int64_t tiles,
                                                      uint8_t* codes, Piece& piece) {
  const int64_t block_bytes = kNr * w.bits;
  const uint8_t* blocks = w.blocks + piece.panel * w.k_blocks * block_bytes;
  const uint8_t* source = blocks + piece.k_blocks.begin * block_bytes;
  piece.work.packed = w.bits == 4 ? source : nullptr;
  piece.work.codes = w.bits == 4 ? codes : source;
  piece.work.prefetch_at = blocks + piece.k_blocks.end * block_bytes + kPiecePrefetchDistance;
  piece.work.prefetch_stride = (block_bytes + 2 * tiles - 1) / (2 * tiles);
}

// An array too small for the hardware prefetcher to notice: fetched in equal shares by all tiles.
class PrefetchStream {
 public:
  PrefetchStream(const void* from, int64_t bytes, int64_t share)
      : at_(static_cast<const char*>(from)), end_(at_ + bytes), share_(share) {}
  void prefetch_part() {
    const char* to = at_ + share_ < end_ ? at_ + share_ : end_;
    for (; at_ < to; at_ += 64) __builtin_prefetch(at_);
  }

 private:
  const char* at_;
  const char* end_;
  int64_t share_;
};

// The scales and zero points of the `groups` groups from g on; `share`: of zero points, for a tile.
struct NextGroups {
  NextGroups(const PackedWeights& w, int64_t panel, int64_t g, int64_t groups, int64_t share)
      : first((panel * w.groups + g) * kNr),
        scales(w.scales + first * w.scale_bytes, groups * kNr * w.scale_bytes,
               w.scale_bytes * share),
        zeros(w.zero_points, 0, share) {
    if (w.zero_points != nullptr) {
      zeros = PrefetchStream(w.zero_points + first, groups * kNr, share);
    }
  }
  void prefetch_part() {
    scales.prefetch_part();
    zeros.prefetch_part();
  }
  int64_t first;
  PrefetchStream scales, zeros;
};

// Outputs, whose rows are far apart in memory, are fetched during the last `parts` pieces of a
// panel: every parts-th row of a tile with each, `later` pieces before the last one.
inline __attribute__((always_inline)) void prefetch_outputs(const MatMulArgs& args,
                                                            const Tile& tile, int64_t panel,
                                                            int64_t later, int64_t parts) {
  const int64_t size = args.element == Element::kFloat16 ? 2 : 4;
  for (int64_t row = tile.rows.begin + later; later < parts && row < tile.rows.end; row += parts) {
    const char* at =
        static_cast<const char*>(args.output) + (row * args.output_stride + panel * kNr) * size;
    for (int64_t i = 0; i < kNr * size; i += 64) __builtin_prefetch(at + i, 1);
  }
}

// Many rows (M up to kSharedRows): every piece of the panel is unpacked once for all of them.
void large_m(const MatMulArgs& args, Range rows, int64_t panel, const TileShape& shape) {
  const PackedWeights& w = args.weights;
  alignas(64) uint8_t codes[kKept.k_blocks * kUnpackedBlockBytes];
  alignas(64) float y[kSharedRows * kNr];
  alignas(64) int32_t partial[kSharedRows * kNr];
  GroupForms forms;
  Tile all[kSharedRows / kKept.rows];
  const int64_t tiles = cut_rows(w, rows, shape.rows, y, partial, all);
  const int64_t pieces = (w.k_blocks + shape.k_blocks - 1) / shape.k_blocks;
  const int64_t parts = pieces < kMaxRows ? pieces : kMaxRows;
  const GroupCounts counts(w, shape);
  const int64_t share = (counts.piece * kNr + tiles) / tiles;  // of zero points, for a tile
  std::memset(y, 0, static_cast<size_t>((rows.end - rows.begin) * kNr) * sizeof(float));

  for (int64_t begin = 0, g = 0; begin < w.k_blocks;) {
    Piece piece = piece_at(w, shape, counts, panel, begin, g, forms);
    GroupsWork& work = piece.work;
    const int64_t end = piece.k_blocks.end;
    work.stride = args.rows.stride;
    set_source(w, tiles, codes, piece);
    if (work.scales != nullptr) g += work.groups;
    NextGroups next(w, panel, g, work.groups, share);
    const int64_t later = (w.k_blocks - end + shape.k_blocks - 1) / shape.k_blocks;
    for (int64_t t = 0; t < tiles; ++t) {
      const Tile& tile = all[t];
      prefetch_outputs(args, tile, panel, later, parts);
      next.prefetch_part();
      add_tile(args, piece, tile);
      if (end == w.k_blocks) store_rows(args, tile.rows, panel, tile.y);
      work.prefetch_at += 2 * (end - begin) * work.prefetch_stride;
      work.packed = nullptr;
    }
    begin = end;
  }
}

template <int kBits, PrefetchHint kHint>
void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  switch (rows.end - rows.begin) {
    case 0: break;
    case 1: small_m<1, kBits, kHint>(args, rows.begin, panel); break;
    case 2: small_m<2, kBits, kHint>(args, rows.begin, panel); break;
    case 3: small_m<3, kBits, kHint>(args, rows.begin, panel); break;
    case 4: small_m<4, kBits, kHint>(args, rows.begin, panel); break;
    case 5: small_m<5, kBits, kHint>(args, rows.begin, panel); break;
    case 6: small_m<6, kBits, kHint>(args, rows.begin, panel); break;
    default: {
      const bool keeps = tuned_for_amd() && rows.end - rows.begin >= kKeptFromRows;
      large_m(args, rows, panel, keeps ? kKept : kTall);
    }
  }
}

template <int kBits>
void all_panels(const MatMulArgs& args, Range rows, Range panels) {
  const auto panel_of =
      tuned_for_amd() ? one_panel<kBits, PrefetchHint::kL1> : one_panel<kBits, PrefetchHint::kL2>;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const int64_t end = row + kSharedRows < rows.end ? row + kSharedRows : rows.end;
      panel_of(args, {row, end}, panel);
    }
  }
}

}  // namespace

void matmul_w4a8_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<4>(args, rows, panels);
}

void matmul_w8a8_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  all_panels<8>(args, rows, panels);
}

}  // namespace fptq
