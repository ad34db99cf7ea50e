// What MindSpore calls; kernels.py says what each takes. An entry gets the arrays of its inputs, then of its outputs.
//
// Shape letters: M rows, K width of x, N width of y; B texts, H hidden, D head size, C slots of a text's cache.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attention.h"
#include "huge_pages.h"
#include "products.h"
#include "vectors.h"
#include "workers.h"

namespace {

// x <- x sigmoid(2 s x (1 + c x^2)) for `rows` of `columns`, `step` apart: GELU in its tanh form, fast GELU and SiLU, by
// their s and c.
void gate(float *x, int64_t step, int64_t rows, int64_t columns, float s, float c) {
  const float linear = -2.0f * s, cubic = linear * c;
  const auto gated = [=](Vector v) {  // v c v, not v v c: where c is 0 that is 0 for each v there is
    return v / (exponential(v * (v * cubic * v + linear)) + 1.0f);
  };
  for (; rows > 0; --rows, x += step) {
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) store(x + i, gated(load(x + i)));
    if (i == columns) continue;
    float rest[LANES] = {};
    std::copy(x + i, x + columns, rest);
    store(rest, gated(load(rest)));
    std::copy_n(rest, columns - i, x + i);
  }
}

// Layer normalisation of one row: eps inside the root, biased variance.
void normalise(const float *x, const float *gamma, const float *beta, float eps, int64_t H, float *y) {
  const float mean = sum(x, H, [](auto value) { return value; }) / H;
  const float variance = sum(x, H, [=](auto value) { return (value - mean) * (value - mean); }) / H;
  const float per_deviation = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < H; ++i) y[i] = (x[i] - mean) * per_deviation * gamma[i] + beta[i];
}

constexpr int NOT_THERE = 1;  // an id or a position that is in no table

// What MindSpore hands to a kernel: its arrays and their shapes, of inputs and then of outputs. The last input of every
// kernel says how many of the rows there are are to be worked on.
struct Arrays {
  int count;
  void **data;
  int64_t **shapes;
  int status = 0;  // MindSpore raises an error that names the kernel where it is anything else
  float *operator[](int i) const { return static_cast<float *>(data[i]); }
  const int32_t *integers(int i) const { return static_cast<const int32_t *>(data[i]); }
  int64_t size(int i, int axis) const { return shapes[i][axis]; }
  int64_t rows(int i) const { return std::min<int64_t>(*integers(i), size(0, 0)); }
};

struct Input {
  const float *x;
  int64_t M, K;
};

// The first input of a product. Three arrays more than `plain` means that gamma (K,), beta (K,) and eps (1,) are behind
// it: then its layer norm, and the rest has the numbers that it has without those. `rows` is the last input's number.
Input take_input(Arrays &a, int plain, int rows) {
  const bool normed = a.count > plain;
  const Input input{a[0], a.rows(normed ? rows + 3 : rows), a.size(0, 1)};
  if (!normed) return input;
  thread_local std::vector<float> norms;
  norms.resize(input.M * input.K);
  float *y = norms.data();  // the caller's, for all threads
  const int64_t parts = input.M > ROWS ? Workers::get().count() : 1;
  Workers::get().run(parts, [&](int64_t part) {
    for (int64_t m = first_row(part, parts, input.M); m < first_row(part + 1, parts, input.M); ++m) {
      normalise(input.x + m * input.K, a[1], a[2], *a[3], input.K, y + m * input.K);
    }
  });
  a.data += 3;
  a.shapes += 3;
  return {y, input.M, input.K};
}

// For a product that is added to nothing.
auto zeros(int64_t N, float *y) {
  return [=](int64_t row, int64_t rows, int64_t n, int64_t columns) {
    for (int64_t m = row; m < row + rows; ++m) std::fill_n(y + m * N + n, columns, 0.0f);
  };
}

// What a product is added to: b in each row of y (M, N), and the residual, if there is one.
auto sum_of_bias(const float *b, const float *residual, int64_t N, float *y) {
  return [=](int64_t row, int64_t rows, int64_t n, int64_t columns) {
    for (int64_t m = row; m < row + rows; ++m) {
      float *to = y + m * N + n;
      std::copy_n(b + n, columns, to);
      if (residual == nullptr) continue;
      for (int64_t i = 0; i < columns; ++i) to[i] += residual[m * N + n + i];
    }
  };
}

// y = x W + b (+ residual), then through the gate, if there is one; W [K, N].
void in_out_product(Input in, const float *w, const float *b, const float *residual, const float *gate_numbers,
                    int64_t N, float *y) {
  on_huge_pages(w, in.K * N);
  const auto before = sum_of_bias(b, residual, N, y);
  const auto through_gate = [=](int64_t row, int64_t rows, int64_t n, int64_t columns) {
    if (gate_numbers != nullptr) gate(y + row * N + n, N, rows, columns, gate_numbers[0], gate_numbers[1]);
  };
  const Tiles tiles(false, in.M, N, in.K);
  Workers::get().run(tiles.count(), [&](int64_t i) {
    multiply(in.x, {w, false}, in.M, in.K, y, N, tiles[i], before, through_gate);
  });
}

}  // namespace

// All else is hidden (`-fvisibility=hidden`): a process that loads two of these libraries has workers for each.
#define ENTRY extern "C" __attribute__((visibility("default")))

ENTRY void SetThreads(int threads) { Workers::wanted() = threads; }

#define KERNEL(name)                                                                                       \
  static void name(Arrays &a);                                                                             \
  ENTRY int Launch##name(int count, void **data, int *, int64_t **shapes, const char **, void *, void *) { \
    Arrays arrays{count, data, shapes};                                                                    \
    name(arrays);                                                                                          \
    return arrays.status;                                                                                  \
  }                                                                                                        \
  static void name(Arrays &a)

// Every x of a product but the one with a residual may have its layer norm's gamma, beta and eps behind it.

// x (M, K), w (N, K), rows -> y (M, N)
KERNEL(OutInProduct) {
  const Input in = take_input(a, 4, 2);
  const int64_t N = a.size(1, 0);
  on_huge_pages(a[1], in.K * N);
  const Tiles tiles(true, in.M, N, in.K);
  Workers::get().run(tiles.count(), [&](int64_t i) {
    multiply(in.x, {a[1], true}, in.M, in.K, a[3], N, tiles[i], zeros(N, a[3]), nothing);
  });
}

// x (M, K) with its layer norm, then w (N, K) and b (N,) of one product or more, rows -> y (M, N) of each
KERNEL(OutInProducts) {
  const int products = (a.count - 5) / 3, rows = 1 + 2 * products;
  const Input in = take_input(a, a.count - 3, rows);
  const int64_t N = a.size(1, 0);
  for (int which = 0; which < products; ++which) on_huge_pages(a[1 + 2 * which], in.K * N);
  const Tiles tiles(true, in.M, N, in.K);
  Workers::get().run(products * tiles.count(), [&](int64_t i) {
    const int64_t which = i / tiles.count();
    float *y = a[rows + 1 + which];
    const auto before = sum_of_bias(a[2 + 2 * which], nullptr, N, y);
    multiply(in.x, {a[1 + 2 * which], true}, in.M, in.K, y, N, tiles[i % tiles.count()], before, nothing);
  });
}

// x (M, K), w (K, N), b (N,), rows -> y (M, N)
KERNEL(InOutProduct) {
  const Input in = take_input(a, 5, 3);
  in_out_product(in, a[1], a[2], nullptr, nullptr, a.size(1, 1), a[4]);
}

// x (M, K), w (K, N), b (N,), (s, c) of the gate, rows -> y (M, N)
KERNEL(GatedInOutProduct) {
  const Input in = take_input(a, 6, 4);
  in_out_product(in, a[1], a[2], nullptr, a[3], a.size(1, 1), a[5]);
}

// x (M, K), w (K, N), b (N,), residual (M, N), rows -> y (M, N)
KERNEL(InOutProductPlus) {
  in_out_product({a[0], a.rows(4), a.size(0, 1)}, a[1], a[2], a[3], nullptr, a.size(1, 1), a[5]);
}

// word embeddings (V, H), positions' (P, H), ids and positions (B, T) int32, rows -> their sum (B*T, H)
KERNEL(Embedding) {
  const int64_t H = a.size(0, 1), rows = std::min<int64_t>(*a.integers(4), a.size(2, 0) * a.size(2, 1));
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t id = a.integers(2)[t], place = a.integers(3)[t];
    if (id < 0 || id >= a.size(0, 0) || place < 0 || place >= a.size(1, 0)) {
      a.status = NOT_THERE;
      return;
    }
    const float *word = a[0] + id * H, *position = a[1] + place * H;
    for (int64_t h = 0; h < H; ++h) a[5][t * H + h] = word[h] + position[h];
  }
}

// One row of a cache, from some slot on, to the front of a row of another, in all layers: keys and values of the source
// (B*N*C, D), all keys before all values; as many of the target, (B'*N*C', D); source row, slot and target row
// (3,) int32; N, C and C' (3,) int32 -> how many slots were copied (1,) int32
KERNEL(CopyRow) {
  const int arrays = (a.count - 3) / 2;
  const int32_t *where = a.integers(2 * arrays), *sizes = a.integers(2 * arrays + 1);
  const int64_t N = sizes[0], from = sizes[1], to = sizes[2], slots = std::min(from - where[1], to);
  Workers::get().run(arrays * N, [&](int64_t tile) {
    const int64_t array = tile / N, head = tile % N, D = a.size(array, 1);
    const float *source = a[array] + ((where[0] * N + head) * from + where[1]) * D;
    std::copy_n(source, slots * D, a[arrays + array] + (where[2] * N + head) * to * D);
  });
  *static_cast<int32_t *>(a.data[2 * arrays + 2]) = slots;
}

// One more token of each text: q, k, v (B, H), keys and values (B*N*C, D), positions (B, 1) int32, scale (1,), rows ->
// context (B, H). Here N is the number of heads. k and v are written to the text's position in its cache, and the query
// sees all up to there.
KERNEL(AttentionOfNextTokens) {
  const int64_t B = a.size(0, 0), H = a.size(0, 1), D = a.size(3, 1), N = H / D, C = a.size(3, 0) / (B * N);
  const int32_t *positions = a.integers(5);
  Workers::get().run(a.rows(7) * N, [&](int64_t head) {  // (B, H) is (B, N, D): heads are counted as in the cache
    const int64_t position = positions[head / N];
    float *keys = a[3] + head * C * D, *values = a[4] + head * C * D;
    std::copy_n(a[1] + head * D, D, keys + position * D);
    std::copy_n(a[2] + head * D, D, values + position * D);
    attend(a[0] + head * D, keys, values, position + 1, D, *a[6], a[8] + head * D);
  });
}

// One head's keys or values of T tokens, (T, H) from that head's first number on, to the front of their cache.
void keep(const float *from, int64_t T, int64_t H, int64_t D, float *cache) {
  for (int64_t t = 0; t < T; ++t) std::copy_n(from + t * H, D, cache + t * D);
}

// k, v (T, H), keys and values (N*C, D), rows -> how many tokens were kept, in slots 0 to rows - 1: (1,) int32
KERNEL(KeepKeysAndValues) {
  const int64_t T = a.rows(4), H = a.size(0, 1), D = a.size(2, 1), N = H / D, C = a.size(2, 0) / N;
  Workers::get().run(2 * N, [&](int64_t i) {
    const int64_t which = i / N, head = i % N;
    keep(a[which] + head * D, T, H, D, a[2 + which] + head * C * D);
  });
  *static_cast<int32_t *>(a.data[5]) = T;
}

// Texts one behind the other: q, k, v (T, H), keys and values (N*C, D), positions (1, T) int32, scale (1,), rows ->
// context (T, H). k and v are written to slots 0 to rows - 1 of the cache, and a token sees its text up to itself.
KERNEL(AttentionWithinTexts) {
  const int64_t T = a.rows(7), H = a.size(0, 1), D = a.size(3, 1), N = H / D, C = a.size(3, 0) / N;
  Workers::get().run(N, [&](int64_t head) {
    float *keys = a[3] + head * C * D, *values = a[4] + head * C * D;
    keep(a[1] + head * D, T, H, D, keys);
    keep(a[2] + head * D, T, H, D, values);
    attend_within_texts({a[0] + head * D, H}, {keys, D}, {values, D}, a.integers(5), nullptr, T, D, *a[6],
                        a[8] + head * D);
  });
}

// Some of those tokens: q (n, H), keys and values (N*C, D), slots and positions (n,) int32, scale (1,), rows -> context
// (n, H). A token sees its text, which is in the cache, up to itself.
KERNEL(AttentionOfTokens) {
  const int64_t n = a.rows(6), H = a.size(0, 1), D = a.size(1, 1), N = H / D, C = a.size(1, 0) / N;
  Workers::get().run(N, [&](int64_t head) {
    for (int64_t t = 0; t < n; ++t) {
      const int64_t position = a.integers(4)[t], begin = (head * C + a.integers(3)[t] - position) * D;
      const int64_t place = t * H + head * D;
      attend(a[0] + place, a[1] + begin, a[2] + begin, position + 1, D, *a[5], a[7] + place);
    }
  });
}

// Texts of one length: q, k, v (B*T, H), mask (B, T) int32, heads (1,) int32, scale (1,), rows -> context (B*T, H). A
// token sees itself, and its text up to there where the mask is not 0.
KERNEL(AttentionOfRows) {
  const int64_t H = a.size(0, 1), T = a.size(3, 1), N = *a.integers(4), D = H / N, B = a.rows(6) / T;
  std::vector<int32_t> positions(T);
  std::iota(positions.begin(), positions.end(), 0);
  Workers::get().run(B * N, [&](int64_t part) {
    const int64_t text = part / N, place = text * T * H + part % N * D;
    const int32_t *mask = a.integers(3) + text * T;
    const bool all_seen = std::find(mask, mask + T, 0) == mask + T;
    attend_within_texts({a[0] + place, H}, {a[1] + place, H}, {a[2] + place, H}, positions.data(),
                        all_seen ? nullptr : mask, T, D, *a[5], a[7] + place);
  });
}

// x (M, K), w (V, K), targets (M,) int32, rows -> -log softmax(x w^T)[target] (M,). The logits are made and used a tile
// of the vocabulary at a time: they are never all in memory.
KERNEL(TargetLosses) {
  constexpr int64_t WIDTH = 6 * PANEL;
  const Input in = take_input(a, 5, 3);
  const int64_t V = a.size(1, 0), M = in.M, tiles = (V + WIDTH - 1) / WIDTH;
  const int32_t *targets = a.integers(2);
  if (std::any_of(targets, targets + M, [=](int64_t target) { return target < 0 || target >= V; })) {
    a.status = NOT_THERE;
    return;
  }
  on_huge_pages(a[1], in.K * V);
  std::vector<Softmax> parts(tiles * M);  // of each tile and row
  std::vector<float> of_targets(M);
  Workers::get().run(tiles, [&](int64_t tile) {
    thread_local std::vector<float> logits;
    const int64_t first = tile * WIDTH, columns = std::min(WIDTH, V - first);
    logits.resize(M * WIDTH);
    multiply(in.x, {a[1] + first * in.K, true}, M, in.K, logits.data(), WIDTH, {0, M, 0, columns},
             zeros(WIDTH, logits.data()), nothing);
    for (int64_t m = 0; m < M; ++m) {
      float *row = &logits[m * WIDTH];
      const int64_t target = targets[m] - first;
      if (target >= 0 && target < columns) of_targets[m] = row[target];
      parts[tile * M + m] = exponentials(row, columns, 1.0f);
    }
  });
  for (int64_t m = 0; m < M; ++m) {
    float highest = -INFINITY;
    for (int64_t tile = 0; tile < tiles; ++tile) highest = std::max(highest, parts[tile * M + m].highest);
    double total = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Softmax part = parts[tile * M + m];
      total += part.total * std::exp(static_cast<double>(part.highest) - highest);
    }
    a[4][m] = std::log(total) + (highest - of_targets[m]);
  }
}
