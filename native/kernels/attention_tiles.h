// Attention by tiles of up to 6 rows, written with the compiler's vector extensions for vectors of
// kLanes floats, which the file that includes this defines before. In an unnamed namespace: each
// file is compiled for its own instruction set and has its own copies, which no linker merges.
//
// Online softmax (Milakov and Gimelshein, arXiv 1805.02867): with every block of keys the sums so
// far are scaled to the new maximum. No row looks at blocks after its last key.
#pragma once

#include <cstring>

#include "attention_vectors.h"

namespace fptq {

namespace {

constexpr int kRows = 6;
// For up to so many rows, transposing the keys costs more than it saves.
constexpr int kFew = 3;
// For up to so many rows memory is the limit, and the next keys are prefetched.
constexpr int64_t kFetchRows = 16;
constexpr float kNothing = -__builtin_inff();
// Registers of a row in a tile: 24 sums where there are 32 registers, 12 where there are 16.
constexpr int kWide = kLanes == 8 ? 2 : 4;

// c = a x b (+ factor * c): R rows by V registers of columns.
template <int R, int V, bool kAdd, class T>
inline __attribute__((always_inline)) void product(const float* a, int64_t a_stride, const T* b,
                                                   int64_t b_stride, int64_t depth, float* c,
                                                   int64_t c_stride, const float* factor) {
  Floats sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sum[r][v] = Floats{};
      if constexpr (kAdd) sum[r][v] = load<Floats>(c + r * c_stride + v * kLanes) * factor[r];
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    Floats columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) columns[v] = load_floats(b + d * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float x = a[r * a_stride + d];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += x * columns[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kLanes, sum[r][v]);
  }
}

// The same for any number of columns that is a multiple of 16.
template <int R, bool kAdd, class T>
void product_columns(const float* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth,
                     float* c, int64_t c_stride, int64_t columns, const float* factor) {
  constexpr int kNarrow = static_cast<int>(kAttentionLanes) / kLanes;
  int64_t at = 0;
  for (; at + kWide * kLanes <= columns; at += kWide * kLanes) {
    product<R, kWide, kAdd>(a, a_stride, b + at, b_stride, depth, c + at, c_stride, factor);
  }
  if constexpr (kNarrow < kWide) {
    for (; at < columns; at += kAttentionLanes) {
      product<R, kNarrow, kAdd>(a, a_stride, b + at, b_stride, depth, c + at, c_stride, factor);
    }
  }
}

// [R, kAttentionKeys] = q x keys as they lie in the cache; columns without a key are left as they
// are.
template <int R, class T>
void scores_of_few(const float* q, const T* k, int64_t keys, int64_t size, float* scores) {
  for (int64_t key = 0; key < keys; ++key, k += size) {
    Floats sum[R] = {};
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) {
      const Floats part = load_floats(k + d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] += load<Floats>(q + r * size + d) * part;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float score = across(sum[r], [](Floats a, Floats b) { return a + b; });
      for (int64_t rest = d; rest < size; ++rest)
        score += q[r * size + rest] * static_cast<float>(k[rest]);
      scores[r * kAttentionKeys + key] = score;
    }
  }
}

// Prefetches what comes next; few rows are done before the hardware prefetcher has noticed.
inline void fetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// A block of keys and what is kept between blocks.
struct Block {
  const float* keys;        // transposed, or as they lie in the cache for few rows
  const float* values;      // [.., value_stride]
  const int8_t* key_codes;  // as they lie in the cache, for few rows; or null
  const int8_t* value_codes;
  int64_t value_stride;
  int64_t first, count;  // of its keys
  float* sums;           // [rows, padded]
  float* largest;        // [rows]
  float* totals;         // [rows]
};

// Rows first .. first + R - 1 meet one block.
template <int R>
void meet(const AttentionTask& task, const Block& block, int64_t first) {
  const int64_t padded = attention_padded(task.size);
  const auto seen = [&](int64_t row) { return task.seen + row / task.group - block.first; };
  const int64_t depth = least(block.count, seen(first + R - 1));
  if (depth <= 0) return;
  alignas(64) float scores[R * kAttentionKeys];
  float factor[R];
  const float* q = task.q + first * task.size;
  bool few = false;
  if constexpr (R <= kFew) {
    few = task.rows <= kFew;
    if (block.key_codes != nullptr) {
      scores_of_few<R>(q, block.key_codes, depth, task.size, scores);
    } else if (few) {
      scores_of_few<R>(q, block.keys, depth, task.size, scores);
    }
  }
  if (!few) {
    product_columns<R, false>(q, task.size, block.keys, kAttentionKeys, task.size, scores,
                              kAttentionKeys, kAttentionKeys, nullptr);
  }
  constexpr int kParts = static_cast<int>(kAttentionKeys) / kLanes;
  for (int r = 0; r < R; ++r) {
    float* row = scores + r * kAttentionKeys;
    const int64_t own = least(seen(first + r), depth);
    for (int64_t key = own < 0 ? 0 : own; key < kAttentionKeys; ++key) row[key] = kNothing;
    Floats most = load<Floats>(row);
    for (int i = 1; i < kParts; ++i) {
      const Floats next = load<Floats>(row + i * kLanes);
      most = next > most ? next : most;
    }
    const float before = block.largest[first + r];
    const float here = across(most, [](Floats a, Floats b) { return a > b ? a : b; });
    const float largest = here > before ? here : before;
    block.largest[first + r] = largest;
    Floats total = {};
    for (int i = 0; i < kParts; ++i) {
      const Floats p = exponential(load<Floats>(row + i * kLanes) - largest);
      store(row + i * kLanes, p);
      total += p;
    }
    const Floats change = {before - largest};
    factor[r] = before == largest ? 1.0f : exponential(change)[0];
    block.totals[first + r] = block.totals[first + r] * factor[r] +
                              across(total, [](Floats a, Floats b) { return a + b; });
  }
  if constexpr (R <= kFew) {
    if (block.value_codes != nullptr) {
      return product_columns<R, true>(scores, kAttentionKeys, block.value_codes, block.value_stride,
                                      depth, block.sums + first * padded, padded, padded, factor);
    }
  }
  product_columns<R, true>(scores, kAttentionKeys, block.values, block.value_stride, depth,
                           block.sums + first * padded, padded, padded, factor);
}

// The keys and values of a block: where they lie, or copies in the task's scratch memory.
void find_block(const AttentionTask& task, int64_t all, float* keys, float* values, Block& block) {
  const bool codes = task.v_scales != nullptr;
  const int64_t element = codes ? 1 : static_cast<int64_t>(sizeof(float));
  const uint8_t* k = static_cast<const uint8_t*>(task.k) + block.first * task.size * element;
  const uint8_t* v = static_cast<const uint8_t*>(task.v) + block.first * task.size * element;
  const int64_t count = block.count * task.size;
  if (task.rows <= kFetchRows) {
    const int64_t next = least(kAttentionKeys, all - block.first - block.count) * task.size;
    fetch(k + count * element, next * element);
    fetch(v + count * element, next * element);
  }
  block.keys = reinterpret_cast<const float*>(k);
  block.values = reinterpret_cast<const float*>(v);
  block.value_stride = task.size;
  const int8_t* own = reinterpret_cast<const int8_t*>(v);
  const bool few = task.rows <= kFew;
  block.key_codes = codes && few ? reinterpret_cast<const int8_t*>(k) : nullptr;
  if (codes && !few) {
    float* wide = keys + kAttentionKeys * task.size;
    widen(reinterpret_cast<const int8_t*>(k), count, wide);
    block.keys = wide;
  }
  if (!few) {
    transpose(block.keys, block.count, task.size, keys);
    block.keys = keys;
  }
  const int64_t padded = attention_padded(task.size);
  block.value_codes = codes && few && padded == task.size ? own : nullptr;
  if (padded == task.size && (few || !codes)) return;
  block.values = values;
  block.value_stride = padded;
  if (padded == task.size) {
    widen(own, count, values);
    return;
  }
  // Whole registers of a row must not read what follows.
  fill(values, kAttentionKeys * padded, 0.0f);
  for (int64_t key = 0; key < block.count; ++key) {
    float* to = values + key * padded;
    if (codes) {
      widen(own + key * task.size, task.size, to);
    } else {
      std::memcpy(to, v + key * task.size * element,
                  static_cast<size_t>(task.size) * sizeof(float));
    }
  }
}

void attend(const AttentionTask& task) {
  const int64_t padded = attention_padded(task.size);
  float* keys = task.scratch;
  float* values = keys + (2 * kAttentionKeys * task.size + 15) / 16 * 16;
  Block block{};
  block.sums = values + kAttentionKeys * padded;
  block.largest = block.sums + task.rows * padded;
  block.totals = block.largest + task.rows;
  fill(block.sums, task.rows * padded, 0.0f);
  fill(block.largest, task.rows, kNothing);
  fill(block.totals, task.rows, 0.0f);

  const int64_t all = task.seen + (task.rows - 1) / task.group;  // keys of the last row
  const int64_t tiles = (task.rows + kRows - 1) / kRows;
  for (; block.first < all; block.first += kAttentionKeys) {
    block.count = least(kAttentionKeys, all - block.first);
    find_block(task, all, keys, values, block);
    for (int64_t t = 0; t < tiles; ++t) {  // of equal height
      const int64_t first = t * task.rows / tiles;
      switch ((t + 1) * task.rows / tiles - first) {
        case 1: meet<1>(task, block, first); break;
        case 2: meet<2>(task, block, first); break;
        case 3: meet<3>(task, block, first); break;
        case 4: meet<4>(task, block, first); break;
        case 5: meet<5>(task, block, first); break;
        default: meet<6>(task, block, first); break;
      }
    }
  }
  for (int64_t r = 0; r < task.rows; ++r) {
    const float total = block.totals[r];
    const float* sums = block.sums + r * padded;
    float* out = task.output + r / task.group * task.output_stride + r % task.group * task.size;
    for (int64_t d = 0; d < task.size; ++d) out[d] = sums[d] / total;
    if (task.v_scales == nullptr) continue;
    for (int64_t d = 0; d < task.size; ++d) out[d] *= task.v_scales[d];
  }
}

void apply_rope(const RopeArgs& args) {
  const int64_t half = args.cos == nullptr ? 0 : args.rotary / 2;
  if (args.interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = args.input[2 * i], b = args.input[2 * i + 1];
      args.output[2 * i] = args.scale * (a * args.cos[i] - b * args.sin[i]);
      args.output[2 * i + 1] = args.scale * (b * args.cos[i] + a * args.sin[i]);
    }
  } else {
    for (int64_t i = 0; i < half; ++i) {
      const float a = args.input[i], b = args.input[half + i];
      args.output[i] = args.scale * (a * args.cos[i] - b * args.sin[i]);
      args.output[half + i] = args.scale * (b * args.cos[i] + a * args.sin[i]);
    }
  }
  for (int64_t i = 2 * half; i < args.size; ++i) args.output[i] = args.scale * args.input[i];
  if (args.channels == nullptr) return;
  for (int64_t i = 0; i < args.size; ++i) args.output[i] *= args.channels[i];
}

void quantize_values(const QuantizeKvArgs& args) {
  constexpr float kMagic = 12582912.0f;  // see exponential()
  for (int64_t i = 0; i < args.count; ++i) {
    float x = args.input[i] * args.reciprocals[i];
    x = x < 127.0f ? x : 127.0f;
    x = x > -128.0f ? x : -128.0f;
    args.output[i] = static_cast<int8_t>((x + kMagic) - kMagic);
  }
}

}  // namespace

}  // namespace fptq
