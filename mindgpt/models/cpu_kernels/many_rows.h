// y += x W of many rows x: W is copied, a panel of columns at a time, into the order in which it is used, and the panel
// stays in the second-level cache until all rows have been multiplied with it. The next panel is copied piece by piece
// between the products with this one, while the processor has little else to read and write. After Goto & van de Geijn
// 2008, but that x is not copied.
//
// Shape letters: M rows, K width of x, N width of y.
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "vectors.h"

constexpr int PANEL = 3 * LANES;  // columns of W
constexpr int PANEL_DEPTH = 768;  // rows of W: the fewer pieces, the fewer times y is read and written

// Copy rows k to last and `columns` columns of W [K, N] to panel[k][n], with zeros behind the last column.
inline void pack_in_out(const float *w, int64_t N, int64_t k, int64_t last, int64_t columns, float *panel) {
  for (; k < last; ++k) {
    const float *row = w + k * N;
    float *to = panel + k * PANEL;
    if (columns == PANEL) {
      for (int i = 0; i < PANEL; i += LANES) {
        __builtin_prefetch(row + PANEL + i, 0, 2);  // the panel behind the next one
        store(to + i, load(row + i));
      }
    } else {
      std::fill(std::copy(row, row + columns, to), to + PANEL, 0.0f);
    }
  }
}

// Copy columns k to last of one panel's rows of W, which lie `step` apart, turned round, to panel[k][n], with zeros
// behind the last row.
inline void pack_out_in(const float *w, int64_t step, int64_t k, int64_t last, int64_t rows, float *panel) {
  for (; k + LANES <= last && rows == PANEL; k += LANES) {
    for (int64_t n = 0; n < PANEL; n += LANES) {
      Vector square[LANES];
      for (int i = 0; i < LANES; ++i) {
        square[i] = load(w + (n + i) * step + k);
        __builtin_prefetch(w + (PANEL + n + i) * step + k, 0, 2);
      }
      transpose(square);
      for (int i = 0; i < LANES; ++i) store(panel + (k + i) * PANEL + n, square[i]);
    }
  }
  for (; k < last; ++k) {
    for (int64_t n = 0; n < PANEL; ++n) panel[k * PANEL + n] = n < rows ? w[n * step + k] : 0.0f;
  }
}

// y += x panel for M rows and R vectors of columns. What comes next is sent for: y at once, and the next M rows of x.
template <int M, int R>
inline void panel_products(const float *x, int64_t x_step, const float *panel, int64_t depth, float *y,
                           int64_t y_step) {
  constexpr int LINE = 64 / sizeof(float);
  Vector total[M][R] = {};
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) __builtin_prefetch(y + m * y_step + r * LANES, 1, 3);
  }
  int64_t k = 0;
  for (; k + LINE <= depth; k += LINE) {
    for (int m = 0; m < M; ++m) __builtin_prefetch(x + (M + m) * x_step + k, 0, 3);
    for (int i = 0; i < LINE; ++i) add_products<M, R>(x + k + i, x_step, panel + (k + i) * R * LANES, total);
  }
  for (; k < depth; ++k) add_products<M, R>(x + k, x_step, panel + k * R * LANES, total);
  add_to<M, R>(total, y, y_step);
}

// y += x panel for at most ROWS rows and the panel's first columns.
inline void multiply_panel(const float *x, int64_t x_step, const float *panel, int64_t depth, float *y, int64_t y_step,
                           int64_t M, int64_t columns) {
  with_rows(M, [&](auto rows) {
    if (columns == PANEL) return panel_products<rows, 3>(x, x_step, panel, depth, y, y_step);
    float whole[rows * PANEL] = {};
    for (int i = 0; i < rows; ++i) std::memcpy(whole + i * PANEL, y + i * y_step, columns * sizeof(float));
    panel_products<rows, 3>(x, x_step, panel, depth, whole, PANEL);
    for (int i = 0; i < rows; ++i) std::memcpy(y + i * y_step, whole + i * PANEL, columns * sizeof(float));
  });
}

// Columns first to last of y += x W, or with out_in of y += x W^T. For `before` and `after` see `multiply`.
template <typename Before, typename After>
inline void multiply_many(bool out_in, const float *x, const float *w, int64_t M, int64_t K, float *y, int64_t N,
                          int64_t first, int64_t last, const Before &before, const After &after) {
  alignas(64) static thread_local float panels[2][PANEL_DEPTH * PANEL];
  const auto depth_at = [&](int64_t k) { return std::clamp<int64_t>(K - k, 0, PANEL_DEPTH); };
  // Rows `from` to `to` of the panel at (k, n).
  const auto pack = [&](int64_t k, int64_t n, int64_t from, int64_t to, float *panel) {
    const int64_t columns = std::min<int64_t>(PANEL, last - n);
    if (out_in) return pack_out_in(w + n * K + k, K, from, to, columns, panel);
    pack_in_out(w + k * N + n, N, from, to, columns, panel);
  };
  float *panel = panels[0], *next = panels[1];
  pack(0, first, 0, depth_at(0), panel);
  for (int64_t k = 0; k < K; k += PANEL_DEPTH) {
    for (int64_t n = first; n < last; n += PANEL, std::swap(panel, next)) {
      const bool turn = n + PANEL >= last;  // of the columns: the next panel lies below the first one
      const int64_t next_k = turn ? k + PANEL_DEPTH : k, next_n = turn ? first : n + PANEL;
      const int64_t columns = std::min<int64_t>(PANEL, last - n), next_depth = depth_at(next_k);
      const int64_t vectors = (next_depth + LANES - 1) / LANES, blocks = (M + ROWS - 1) / ROWS;
      const int64_t piece = (vectors + blocks - 1) / blocks * LANES;  // of the next panel, for each block of rows
      for (int64_t m = 0, from = 0; m < M; m += ROWS, from += piece) {
        const int64_t rows = std::min<int64_t>(ROWS, M - m);
        if (from < next_depth) pack(next_k, next_n, from, std::min(next_depth, from + piece), next);
        if (k == 0) before(m, rows, n, columns);
        multiply_panel(x + m * K + k, K, panel, depth_at(k), y + m * N + n, N, rows, columns);
        if (k + PANEL_DEPTH >= K) after(m, rows, n, columns);
      }
    }
  }
}
