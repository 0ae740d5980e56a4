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
constexpr int64_t kAheadBytes = 2048;
// Rows that share an unpacked piece. Their sums take 33 KiB, twice where groups are long, which is
// more than the first-level cache has left; unpacking for fewer rows each would cost more.
constexpr int64_t kSharedRows = 132;

// Few rows: one tile, straight from the weights.
template <int R, bool kWide, bool kLevel>
void direct(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  constexpr int64_t kBytes = kWide ? kWideLineBytes : kLineBytes;
  const uint8_t* lines = w.lines + panel * w.steps * kBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;
  const int64_t ahead = groups_ahead(w);
  alignas(64) float y[R * kPanelColumns];
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t left = w.steps - first;
    Accumulators<R> acc;
    prefetch_group<kLevel>(w, panel, g + ahead);
    start_group<R>(w, sums, panel, g, acc);
    const int64_t steps = left < w.group_steps ? left : w.group_steps;
    const uint8_t* group = lines + first * kBytes;
    if (kWide) {
      dot_wide<R, kLevel>(group, x + first * kStepChannels, args.rows.stride, steps, acc);
    } else {
      dot_packed<R, kLevel>(group, x + first * kStepChannels, args.rows.stride, steps, acc);
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
      args.rows.codes + tile.rows.begin * args.rows.stride + piece.steps.begin * kStepChannels,
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

// The lines of the output that a row of a tile will be written to.
void prefetch_output(const MatMulArgs& args, int64_t row, int64_t panel) {
  const int64_t size = args.element == Element::kFloat16 ? 2 : 4;
  const char* at = static_cast<const char*>(args.output) +
                   (row * args.output_stride + panel * kPanelColumns) * size;
  for (int64_t i = 0; i < kPanelColumns * size; i += 64) __builtin_prefetch(at + i, 1);
}

// A stream of its own, too thin for the hardware prefetcher: fetched in equal shares by all tiles.
class ThinStream {
 public:
  ThinStream(const void* from, int64_t bytes, int64_t share)
      : at_(static_cast<const char*>(from)), end_(at_ + bytes), share_(share) {}
  void prefetch_share() {
    const char* to = at_ + share_ < end_ ? at_ + share_ : end_;
    for (; at_ < to; at_ += 64) __builtin_prefetch(at_);
  }

 private:
  const char* at_;
  const char* end_;
  int64_t share_;
};

// Many rows (at most kSharedRows): every piece of the panel is unpacked once for all of them.
void shared(const MatMulArgs& args, Range rows, int64_t panel, const TileShape& shape) {
  const PackedWeights& w = args.weights;
  const int64_t line_bytes = kPanelColumns * w.bits;
  const uint8_t* lines = w.lines + panel * w.steps * line_bytes;
  alignas(64) uint8_t codes[kKept.steps * kUnpackedBytes];
  alignas(64) float y[kSharedRows * kPanelColumns];
  alignas(64) int32_t partial[kSharedRows * kPanelColumns];
  GroupForms forms;

  // Tiles of equal height: 16 rows are 6 + 5 + 5, because a last tile of few rows runs slowly.
  Tile all[kSharedRows / kKept.rows];
  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + shape.rows - 1) / shape.rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * count / tiles;
    all[t].rows = {rows.begin + first, rows.begin + (t + 1) * count / tiles};
    all[t].y = y + first * kPanelColumns;
    // Whole groups leave nothing behind: their tiles share the same memory, which stays in cache.
    all[t].partial = partial + (w.group_steps > kWholeSteps ? first * kPanelColumns : 0);
  }
  const int64_t pieces = (w.steps + shape.steps - 1) / shape.steps;
  const int64_t parts = pieces < kMaxRows ? pieces : kMaxRows;
  const GroupCounts counts(w, shape);
  const int64_t share =
      (counts.piece * kPanelColumns + tiles) / tiles;  // of zero points, for a tile
  std::memset(y, 0, static_cast<size_t>(count * kPanelColumns) * sizeof(float));
  for (int64_t begin = 0, g = 0; begin < w.steps;) {
    Piece piece = piece_at(w, shape, counts, panel, begin, g, forms);
    GroupsWork& work = piece.work;
    const int64_t end = piece.steps.end;
    const uint8_t* source = lines + begin * line_bytes;
    work.packed = w.bits == 4 ? source : nullptr;
    work.codes = w.bits == 4 ? codes : const_cast<uint8_t*>(source);
    work.stride = args.rows.stride;
    // The next piece (or panel) comes from memory while this one is worked on.
    work.ahead = lines + end * line_bytes + kAheadBytes;
    work.pace = (line_bytes + 2 * tiles - 1) / (2 * tiles);
    if (work.scales != nullptr) g += work.groups;
    const int64_t next = (panel * w.groups + g) * kPanelColumns;
    ThinStream next_scales(w.scales + next * w.scale_bytes,
                           work.groups * kPanelColumns * w.scale_bytes, w.scale_bytes * share);
    ThinStream next_zeros(w.zero_points, 0, share);
    if (w.zero_points != nullptr) {
      next_zeros = ThinStream(w.zero_points + next, work.groups * kPanelColumns, share);
    }
    const int64_t later = (w.steps - end + shape.steps - 1) / shape.steps;
    for (int64_t t = 0; t < tiles; ++t) {
      const Tile& tile = all[t];
      // Lines of the output, which are far apart, are fetched during the last pieces, some each.
      for (int64_t row = tile.rows.begin + later; later < parts && row < tile.rows.end;
           row += parts) {
        prefetch_output(args, row, panel);
      }
      next_scales.prefetch_share();
      next_zeros.prefetch_share();
      switch (tile.rows.end - tile.rows.begin) {
        case 6: add_piece<6>(args, piece, tile); break;
        case 5: add_piece<5>(args, piece, tile); break;
        case 4: add_piece<4>(args, piece, tile); break;
        case 3: add_piece<3>(args, piece, tile); break;
        case 2: add_piece<2>(args, piece, tile); break;
        default: break;  // more rows than a tile has make no smaller one
      }
      if (end == w.steps) store_rows(args, tile.rows, panel, tile.y);
      work.ahead += 2 * (end - begin) * work.pace;
      work.packed = nullptr;
    }
    begin = end;
  }
}

template <bool kWide, bool kLevel>
void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  switch (rows.end - rows.begin) {
    case 0: break;
    case 1: direct<1, kWide, kLevel>(args, rows.begin, panel); break;
    case 2: direct<2, kWide, kLevel>(args, rows.begin, panel); break;
    case 3: direct<3, kWide, kLevel>(args, rows.begin, panel); break;
    case 4: direct<4, kWide, kLevel>(args, rows.begin, panel); break;
    case 5: direct<5, kWide, kLevel>(args, rows.begin, panel); break;
    case 6: direct<6, kWide, kLevel>(args, rows.begin, panel); break;
    default: {
      const bool keeps = tuned_for_amd() && rows.end - rows.begin >= kKeptFromRows;
      shared(args, rows, panel, keeps ? kKept : kTall);
    }
  }
}

}  // namespace

void matmul_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  const bool near = tuned_for_amd();  // fetches into the first-level cache
  const auto panel_of =
      args.weights.bits == 4
          ? (near ? one_panel<false, kFirstLevel> : one_panel<false, kSecondLevel>)
          : (near ? one_panel<true, kFirstLevel> : one_panel<true, kSecondLevel>);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const int64_t end = row + kSharedRows < rows.end ? row + kSharedRows : rows.end;
      panel_of(args, {row, end}, panel);
    }
  }
}

}  // namespace fptq
