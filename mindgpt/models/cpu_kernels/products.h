// y += x W for any number of rows, shared out over the threads.
//
// Shape letters: M rows, K width of x, N width of y.
//
// How a y[m][n] is added up depends on whether there are more than ROWS rows, but on nothing else: not on what other
// rows hold, nor on how many threads there are, nor on which of them came first.
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "many_rows.h"
#include "workers.h"

struct Weight {
  const float *values;
  bool out_in;  // stored [N, K], else [K, N]
};

// Columns first to last of y += x W, on this thread. It is done in blocks of y: before(m, rows, n, columns) is to make
// what is added to, and after(m, rows, n, columns) gets what has come out, while both are in the cache.
template <typename Before, typename After>
inline void multiply(const float *x, Weight w, int64_t M, int64_t K, float *y, int64_t N, int64_t first, int64_t last,
                     const Before &before, const After &after) {
  if (M == 0) return;
  if (M > ROWS) return multiply_many(w.out_in, x, w.values, M, K, y, N, first, last, before, after);
  before(0, M, first, last - first);
  with_rows(M, [&](auto rows) {
    if (w.out_in) {
      out_in_rows<rows>(x, w.values, K, y, N, first, last);
    } else {
      in_out_rows<rows>(x, K, w.values, K, N, y, N, first, last);
    }
  });
  after(0, M, first, last - first);
}

// For a product whose results are left as they are.
inline void nothing(int64_t, int64_t, int64_t, int64_t) {}

// Columns of y that a thread works on at a time: whole panels, and tiles enough for all threads to end together. Of many
// rows, not so few that a tile's first panel, which nothing is multiplied meanwhile, counts. With few rows and W [N, K]
// a tile is one piece of memory, and best when it is small.
inline int64_t tile_width(bool out_in, int64_t M, int64_t N, int64_t K) {
  constexpr int64_t SMALL = 384 * 1024 / sizeof(float), FEW = 8 * PANEL;
  const int64_t threads = Workers::get().count();
  int64_t width = N / (2 * threads);
  if (M > ROWS && width < FEW) width = (N + threads - 1) / threads + PANEL - 1;
  if (out_in && M <= ROWS) width = std::min(width, SMALL / K);
  return std::max<int64_t>(PANEL, width / PANEL * PANEL);
}

// Call columns(first, last) for all tiles of a product.
template <typename Columns>
void share_out(bool out_in, int64_t M, int64_t N, int64_t K, const Columns &columns) {
  const int64_t width = tile_width(out_in, M, N, K);
  Workers::get().run((N + width - 1) / width,
                     [&](int64_t tile) { columns(tile * width, std::min(N, (tile + 1) * width)); });
}
