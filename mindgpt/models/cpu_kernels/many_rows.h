// y += x W of many rows x: W is copied, some panels at a time, into the order in which it is used, and they stay in the
// second-level cache until all rows have been multiplied with them. After Goto & van de Geijn 2008, but that x is not
// copied.
//
// Shape letters: M rows, K width of x, N width of y.
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "vectors.h"

constexpr int PANEL = 3 * LANES;  // columns of W
constexpr int PANEL_DEPTH = 768;  // rows of W: the fewer pieces, the fewer times y is read and written
constexpr int PANELS = 4;         // that are copied at once, so that a row's piece is long enough to be read fast

// Copy `depth` rows and `columns` columns of W [K, N] to panels[k][n], with zeros behind the last column.
inline void pack_in_out(const float *w, int64_t N, int64_t depth, int64_t columns,
                        float (*panels)[PANEL_DEPTH * PANEL]) {
  for (int64_t k = 0; k < depth; ++k) {
    const float *row = w + k * N;
    for (int64_t n = 0; n < columns; n += 64 / sizeof(float)) __builtin_prefetch(row + PANEL_DEPTH * N + n, 0, 2);
    for (int64_t n = 0; n < columns; n += PANEL, row += PANEL) {
      float *to = panels[n / PANEL] + k * PANEL;
      if (columns - n >= PANEL) {
        std::memcpy(to, row, PANEL * sizeof(float));
      } else {
        std::fill(std::copy(row, row + columns - n, to), to + PANEL, 0.0f);
      }
    }
  }
}

// Copy `depth` columns of one panel's rows of W [N, K], turned round, to panel[k][n], with zeros behind the last row.
inline void pack_out_in(const float *w, int64_t K, int64_t depth, int64_t rows, float *panel) {
  for (int64_t n = 0; n < PANEL; n += LANES) {
    int64_t k = 0;
    for (; k + LANES <= depth && n + LANES <= rows; k += LANES) {
      Vector square[LANES];
      for (int i = 0; i < LANES; ++i) {
        square[i] = load(w + (n + i) * K + k);
        __builtin_prefetch(w + (n + i) * K + k + PANEL_DEPTH, 0, 2);
      }
      transpose(square);
      for (int i = 0; i < LANES; ++i) store(panel + (k + i) * PANEL + n, square[i]);
    }
    for (; k < depth; ++k) {
      for (int64_t i = n; i < n + LANES; ++i) panel[k * PANEL + i] = i < rows ? w[i * K + k] : 0.0f;
    }
  }
}

// y += x panel for all rows and the panel's first columns.
inline void multiply_panel(const float *x, int64_t x_step, const float *panel, int64_t depth, float *y, int64_t y_step,
                           int64_t M, int64_t columns) {
  for (int64_t m = 0; m < M; m += ROWS) {
    with_rows(std::min<int64_t>(ROWS, M - m), [&](auto rows) {
      const float *values = x + m * x_step;
      float *to = y + m * y_step;
      if (columns == PANEL) return outer_products<rows, 3, false>(values, x_step, panel, PANEL, depth, to, y_step);
      float whole[rows * PANEL] = {};
      for (int i = 0; i < rows; ++i) std::memcpy(whole + i * PANEL, to + i * y_step, columns * sizeof(float));
      outer_products<rows, 3, false>(values, x_step, panel, PANEL, depth, whole, PANEL);
      for (int i = 0; i < rows; ++i) std::memcpy(to + i * y_step, whole + i * PANEL, columns * sizeof(float));
    });
  }
}

// Columns first to last of y += x W, or with out_in of y += x W^T.
inline void multiply_many(bool out_in, const float *x, const float *w, int64_t M, int64_t K, float *y, int64_t N,
                          int64_t first, int64_t last) {
  alignas(64) static thread_local float panels[PANELS][PANEL_DEPTH * PANEL];
  for (int64_t begin = first; begin < last; begin += PANELS * PANEL) {
    const int64_t end = std::min<int64_t>(last, begin + PANELS * PANEL);
    for (int64_t k = 0; k < K; k += PANEL_DEPTH) {
      const int64_t depth = std::min<int64_t>(PANEL_DEPTH, K - k);
      if (!out_in) pack_in_out(w + k * N + begin, N, depth, end - begin, panels);
      for (int64_t n = begin; n < end; n += PANEL) {
        float *panel = panels[(n - begin) / PANEL];
        const int64_t columns = std::min<int64_t>(PANEL, end - n);
        if (out_in) pack_out_in(w + n * K + k, K, depth, columns, panel);
        multiply_panel(x + k, K, panel, depth, y + n, N, M, columns);
      }
    }
  }
}
