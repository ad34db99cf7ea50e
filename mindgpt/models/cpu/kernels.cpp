// What MindSpore calls; kernels.py says what each takes. An entry gets the arrays of its inputs, then of its outputs.
//
// Shape letters: M rows, K width of x, N width of y; B texts, H hidden, F feed-forward width, D head size, C slots of a
// text's cache.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "activations.h"
#include "attention.h"
#include "huge_pages.h"
#include "products.h"
#include "room.h"
#include "vectors.h"
#include "workers.h"

namespace {

constexpr int NOT_THERE = 1;  // an id or a position that is in no table

// What MindSpore hands to a kernel: its arrays and their shapes, of inputs and then of outputs. The last input of every
// kernel but CopyRow says how many of the rows there are are to be worked on.
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

// For what a kernel needs while it runs; `use` tells its arrays apart. They are the calling thread's, for all threads.
// What each thread has its own rows of is not put where others have read: 3 % of a prompt went into getting it back.
template <int use>
float *room_for(int64_t count) {
  static thread_local Room room;
  return room.of(count);
}

struct Rows {
  const float *x;
  int64_t M, K;
};

// Layer normalisation of one row. divisor: eps, and whether it is added to the unbiased standard deviation (UER-py)
// rather than inside the root of the biased variance.
void normalise(const float *x, const float *gamma, const float *beta, const float *divisor, int64_t H, float *y) {
  const float mean = sum(x, H, [](auto value) { return value; }) / H;
  const float squares = sum(x, H, [=](auto value) { return (value - mean) * (value - mean); }), eps = divisor[0];
  const bool outside = divisor[1] != 0;
  const float per_deviation = 1.0f / (outside ? std::sqrt(squares / (H - 1)) + eps : std::sqrt(squares / H + eps));
  for (int64_t i = 0; i < H; ++i) y[i] = (x[i] - mean) * per_deviation * gamma[i] + beta[i];
}

// Call of_row(m) for each of M rows; of many rows, mostly on the thread that has the row in a product, too.
template <typename OfRow>
void by_rows(int64_t M, const OfRow &of_row) {
  const int64_t parts = M > ROWS ? Workers::get().count() : 1;
  Workers::get().run(parts, [&](int64_t part) {
    for (int64_t m = first_row(part, parts, M); m < first_row(part + 1, parts, M); ++m) of_row(m);
  });
}

// Layer norm of rows, by the gamma (K,), beta (K,) and divisor (2,) that are number `first` of the arrays and those
// after it.
Rows normed(Rows in, const Arrays &a, int first) {
  float *y = room_for<0>(in.M * in.K);
  by_rows(in.M, [&](int64_t m) {
    normalise(in.x + m * in.K, a[first], a[first + 1], a[first + 2], in.K, y + m * in.K);
  });
  return {y, in.M, in.K};
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
      const float *from = residual + m * N + n;
      for (int64_t i = 0; i < columns; ++i) to[i] += from[i];
      for (int64_t i = 0; i < columns; i += LINE) __builtin_prefetch(from + rows * N + i);  // for the next rows
    }
  };
}

// y = x W + b (+ residual), and then `after`; W [K, N].
template <typename After>
void in_out_product(Rows in, const float *w, const float *b, const float *residual, int64_t N, float *y,
                    const After &after) {
  on_huge_pages(w, in.K * N);
  const auto before = sum_of_bias(b, residual, N, y);
  const Tiles tiles(false, in.M, N, in.K);
  Workers::get().run(tiles.count(), [&](int64_t i) {
    multiply(in.x, {w, false}, in.M, in.K, y, N, tiles[i], before, after);
  });
}

struct Projections {
  int64_t M, H;
  float *of[3];  // (M, H) each
};

// What attention needs of x, and where its other arrays are: norm(x) w^T + b for one w (H, K) and b (H,) or more, which
// follow x (M, K), gamma, beta and divisor. The first array is then the one after those.
Projections project(Arrays &a, int count, int rows) {
  const Rows in = normed({a[0], a.rows(rows), a.size(0, 1)}, a, 1);
  const int64_t N = a.size(4, 0);
  Projections all{in.M, N, {}};
  float *const room = room_for<1>(count * in.M * N);
  for (int which = 0; which < count; ++which) {
    on_huge_pages(a[4 + 2 * which], in.K * N);
    all.of[which] = room + which * in.M * N;
  }
  const Tiles tiles(true, in.M, N, in.K);
  Workers::get().run(count * tiles.count(), [&](int64_t i) {
    const int64_t which = i / tiles.count();
    const auto before = sum_of_bias(a[5 + 2 * which], nullptr, N, all.of[which]);
    multiply(in.x, {a[4 + 2 * which], true}, in.M, in.K, all.of[which], N, tiles[i % tiles.count()], before, nothing);
  });
  a.data += 4 + 2 * count;
  a.shapes += 4 + 2 * count;
  return all;
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

// word embeddings (V, H), positions' (P, H), ids and positions (B, T) int32, rows -> their sum (B*T, H)
KERNEL(Embedding) {
  const int64_t H = a.size(0, 1), rows = std::min<int64_t>(*a.integers(4), a.size(2, 0) * a.size(2, 1));
  const int32_t *ids = a.integers(2), *places = a.integers(3);
  for (int64_t t = 0; t < rows; ++t) {
    if (ids[t] >= 0 && ids[t] < a.size(0, 0) && places[t] >= 0 && places[t] < a.size(1, 0)) continue;
    a.status = NOT_THERE;
    return;
  }
  by_rows(rows, [&](int64_t t) {
    const float *word = a[0] + ids[t] * H, *position = a[1] + places[t] * H;
    for (int64_t h = 0; h < H; ++h) a[5][t * H + h] = word[h] + position[h];
  });
}

// One row of a cache, from some slot on, to the front of a row of another, in all layers: keys and values of the source
// (B*N*C, D), all keys before all values; as many of the target, (B'*N*C', D); source row, slot, target row and how
// many slots at most (4,) int32; N, C and C' (3,) int32 -> how many slots were copied (1,) int32
KERNEL(CopyRow) {
  const int arrays = (a.count - 3) / 2;
  const int32_t *where = a.integers(2 * arrays), *sizes = a.integers(2 * arrays + 1);
  const int64_t N = sizes[0], from = sizes[1], to = sizes[2];
  const int64_t slots = std::min<int64_t>({from - where[1], to, where[3]});
  Workers::get().run(arrays * N, [&](int64_t tile) {
    const int64_t array = tile / N, head = tile % N, D = a.size(array, 1);
    const float *source = a[array] + ((where[0] * N + head) * from + where[1]) * D;
    std::copy_n(source, slots * D, a[arrays + array] + (where[2] * N + head) * to * D);
  });
  *static_cast<int32_t *>(a.data[2 * arrays + 2]) = slots;
}

// "Projections" below are x (M, H), gamma, beta (H,) and divisor (2,) of its layer norm, and then w (H, H) and b (H,)
// of queries, keys and values, in this order, or of those that are named.

// One more token of each text: projections, scale (1,), keys and values (B*N*C, D), positions (B, 1) int32, rows ->
// context (B, H). Here N is the number of heads. Key and value are written to the text's position in its cache, and the
// query sees all up to there.
KERNEL(AttentionOfNextTokens) {
  const auto [B, H, qkv] = project(a, 3, 14);
  const int64_t texts = a.size(3, 0), D = a.size(1, 1), N = H / D, C = a.size(1, 0) / (texts * N);
  const int32_t *positions = a.integers(3);
  const float *const q = qkv[0], *const k = qkv[1], *const v = qkv[2];
  Workers::get().run(B * N, [&, D = D, N = N](int64_t head) {  // (B, H) is (B, N, D): heads are counted as in the cache
    const int64_t position = positions[head / N];
    float *keys = a[1] + head * C * D, *values = a[2] + head * C * D;
    std::copy_n(k + head * D, D, keys + position * D);
    std::copy_n(v + head * D, D, values + position * D);
    attend(q + head * D, keys, values, position + 1, D, *a[0], a[5] + head * D);
  });
}

// One head's keys or values of T tokens, (T, H) from that head's first number on, to the front of their cache.
static void keep(const float *from, int64_t T, int64_t H, int64_t D, float *cache) {
  for (int64_t t = 0; t < T; ++t) std::copy_n(from + t * H, D, cache + t * D);
}

// Texts one after another: projections of keys and values, keys and values (N*C, D), rows -> how many tokens were
// kept, in slots 0 to rows - 1: (1,) int32
KERNEL(KeepKeysAndValues) {
  const Projections kv = project(a, 2, 10);
  const int64_t T = kv.M, H = kv.H, D = a.size(0, 1), N = H / D, C = a.size(0, 0) / N;
  Workers::get().run(2 * N, [&](int64_t i) {
    const int64_t which = i / N, head = i % N;
    keep(kv.of[which] + head * D, T, H, D, a[which] + head * C * D);
  });
  *static_cast<int32_t *>(a.data[3]) = T;
}

// Texts one after another: projections, scale (1,), keys and values (N*C, D), positions (1, T) int32, rows ->
// context (T, H). Keys and values are written to slots 0 to rows - 1 of the cache, and a token sees its text up to
// itself.
KERNEL(AttentionWithinTexts) {
  const Projections qkv = project(a, 3, 14);
  const int64_t T = qkv.M, H = qkv.H, D = a.size(1, 1), N = H / D, C = a.size(1, 0) / N;
  Workers::get().run(N, [&](int64_t head) {
    float *keys = a[1] + head * C * D, *values = a[2] + head * C * D;
    keep(qkv.of[1] + head * D, T, H, D, keys);
    keep(qkv.of[2] + head * D, T, H, D, values);
    attend_within_texts({qkv.of[0] + head * D, H}, {keys, D}, {values, D}, a.integers(3), nullptr, T, D, *a[0],
                        a[5] + head * D);
  });
}

// Some of those tokens: projection of queries (n, H), scale (1,), keys and values (N*C, D), slots and positions (n,)
// int32, rows -> context (n, H). A token sees its text, which is in the cache, up to itself.
KERNEL(AttentionOfTokens) {
  const Projections q = project(a, 1, 11);
  const int64_t H = q.H, D = a.size(1, 1), N = H / D, C = a.size(1, 0) / N;
  Workers::get().run(N, [&](int64_t head) {
    for (int64_t t = 0; t < q.M; ++t) {
      const int64_t position = a.integers(4)[t], begin = (head * C + a.integers(3)[t] - position) * D;
      const int64_t place = t * H + head * D;
      attend(q.of[0] + place, a[1] + begin, a[2] + begin, position + 1, D, *a[0], a[6] + place);
    }
  });
}

// Texts of one length: projections of x (B*T, H), scale (1,), mask (B, T) int32, heads (1,) int32, rows -> context
// (B*T, H). A token sees itself, and its text up to there where the mask is not 0.
KERNEL(AttentionOfRows) {
  const Projections qkv = project(a, 3, 13);
  const int64_t H = qkv.H, T = a.size(1, 1), N = *a.integers(2), D = H / N, B = qkv.M / T;
  std::vector<int32_t> positions(T);
  std::iota(positions.begin(), positions.end(), 0);
  Workers::get().run(B * N, [&](int64_t part) {
    const int64_t text = part / N, place = text * T * H + part % N * D;
    const int32_t *mask = a.integers(1) + text * T;
    const bool all_seen = std::find(mask, mask + T, 0) == mask + T;
    attend_within_texts({qkv.of[0] + place, H}, {qkv.of[1] + place, H}, {qkv.of[2] + place, H}, positions.data(),
                        all_seen ? nullptr : mask, T, D, *a[0], a[4] + place);
  });
}

// What a block does after its attention: context (M, H); the output projection's w (H, H) and b (H,); the block's
// input (M, H); gamma, beta (H,), divisor (2,) of the second layer norm; w (H, F) and b (F,), the activation's number
// (1,) int32, w (F, H) and b (H,) of the feed-forward layer; rows -> (M, H)
KERNEL(PostAttention) {
  const int64_t M = a.rows(12), H = a.size(1, 1), F = a.size(7, 1);
  float *const x = room_for<3>(M * H), *const wide = room_for<2>(M * F);
  in_out_product({a[0], M, a.size(0, 1)}, a[1], a[2], a[3], H, x, nothing);
  const auto activation = static_cast<Activation>(*a.integers(9));
  in_out_product(normed({x, M, H}, a, 4), a[7], a[8], nullptr, F, wide,
                 [=](int64_t row, int64_t rows, int64_t n, int64_t columns) {
                   activate(activation, wide + row * F + n, F, rows, columns);
                 });
  in_out_product({wide, M, F}, a[10], a[11], x, H, a[13], nothing);
}

// x (M, K), gamma, beta (K,) and divisor (2,) of its layer norm, w (V, K), rows -> norm(x) w^T (M, V)
KERNEL(Logits) {
  const Rows in = normed({a[0], a.rows(5), a.size(0, 1)}, a, 1);
  const int64_t N = a.size(4, 0);
  on_huge_pages(a[4], in.K * N);
  const Tiles tiles(true, in.M, N, in.K);
  Workers::get().run(tiles.count(), [&](int64_t i) {
    multiply(in.x, {a[4], true}, in.M, in.K, a[6], N, tiles[i], zeros(N, a[6]), nothing);
  });
}

// x (M, K), gamma, beta (K,) and divisor (2,) of its layer norm, w (V, K), targets (M,) int32, rows -> -log
// softmax(norm(x) w^T)[target] (M,). The logits are made and used a tile of the vocabulary at a time: they are never all
// in memory.
KERNEL(TargetLosses) {
  constexpr int64_t WIDTH = 6 * PANEL;
  const Rows in = normed({a[0], a.rows(6), a.size(0, 1)}, a, 1);
  const int64_t V = a.size(4, 0), M = in.M, tiles = (V + WIDTH - 1) / WIDTH;
  const int32_t *targets = a.integers(5);
  if (std::any_of(targets, targets + M, [=](int64_t target) { return target < 0 || target >= V; })) {
    a.status = NOT_THERE;
    return;
  }
  on_huge_pages(a[4], in.K * V);
  struct Softmax {
    float highest, total;
  };
  std::vector<Softmax> parts(tiles * M);  // of each tile and row
  std::vector<float> of_targets(M);
  Workers::get().run(tiles, [&](int64_t tile) {
    thread_local std::vector<float> logits;
    const int64_t first = tile * WIDTH, columns = std::min(WIDTH, V - first);
    logits.resize(M * WIDTH);
    multiply(in.x, {a[4] + first * in.K, true}, M, in.K, logits.data(), WIDTH, {0, M, 0, columns},
             zeros(WIDTH, logits.data()), nothing);
    for (int64_t m = 0; m < M; ++m) {
      float *row = &logits[m * WIDTH];
      const int64_t target = targets[m] - first;
      if (target >= 0 && target < columns) of_targets[m] = row[target];
      const float most = highest(row, columns);
      parts[tile * M + m] = {most, sum(exponentials(row, columns, most, 1.0f))};
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
    a[7][m] = std::log(total) + (highest - of_targets[m]);
  }
}
