// y += x W of few rows x: every weight is read from memory once, as fast as memory can, straight into registers.
//
// Shape letters: M rows, K width of x, N width of y.
#pragma once

#include <algorithm>

#include "vectors.h"

constexpr int ROWS = ACCUMULATORS / 3;  // of x that are multiplied at once with what lies in the registers
constexpr int DEPTH = 32;  // rows of W [K, N] that are gone through for all columns of a tile before the next ones are

// Vectors of columns that `rows` rows leave accumulators for; usual widths are multiples of all of them.
constexpr int columns_for(int rows) {
  for (int columns : {12, 6, 3}) {
    if (columns * rows <= ACCUMULATORS) return columns;
  }
  return 1;
}

// y += dot products of M rows of x with R rows of W, stored [N, K].
template <int M, int R>
inline void dots(const float *x, const float *w, int64_t K, float *y, int64_t N) {
  Vector total[M][R] = {};
  int64_t k = 0;
  for (; k + LANES <= K; k += LANES) {
    Vector weights[R];
    for (int r = 0; r < R; ++r) {
      weights[r] = load(w + r * K + k);
      __builtin_prefetch(w + (r + R) * K + k);
    }
    for (int m = 0; m < M; ++m) {
      const Vector values = load(x + m * K + k);
      for (int r = 0; r < R; ++r) total[m][r] += values * weights[r];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      float result = sum(total[m][r]);
      for (int64_t rest = k; rest < K; ++rest) result += x[m * K + rest] * w[r * K + rest];
      y[m * N + r] += result;
    }
  }
}

// Columns first to last of y += x W^T, with W stored [N, K].
template <int M>
void out_in_rows(const float *x, const float *w, int64_t K, float *y, int64_t N, int64_t first, int64_t last) {
  constexpr int R = std::min(3, columns_for(M));
  int64_t n = first;
  for (; n + R <= last; n += R) dots<M, R>(x, w + n * K, K, y + n, N);
  for (; n < last; ++n) dots<M, 1>(x, w + n * K, K, y + n, N);
}

// total += one column of x, of M rows that lie x_step apart, times one row of W
template <int M, int R>
inline void add_products(const float *x, int64_t x_step, const float *w, Vector (&total)[M][R]) {
  Vector weights[R];
  for (int r = 0; r < R; ++r) weights[r] = load(w + r * LANES);
  for (int m = 0; m < M; ++m) {
    const Vector value = all(x[m * x_step]);
    for (int r = 0; r < R; ++r) total[m][r] += weights[r] * value;
  }
}

// y += total
template <int M, int R>
inline void add_to(const Vector (&total)[M][R], float *y, int64_t y_step) {
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      float *to = y + m * y_step + r * LANES;
      store(to, load(to) + total[m][r]);
    }
  }
}

// y += x W for M rows, which lie x_step apart, R vectors of columns and `depth` rows of W, which lie w_step apart; the
// rows that follow are sent for. The products are added up from 0 on and their sum then to y: what is lost in rounding
// grows with the depth and the number of such pieces, not with the product of both, which is K.
template <int M, int R>
inline void outer_products(const float *x, int64_t x_step, const float *w, int64_t w_step, int64_t depth, float *y,
                           int64_t y_step) {
  Vector total[M][R] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int r = 0; r < R; ++r) __builtin_prefetch(w + (k + DEPTH) * w_step + r * LANES, 0, 2);
    add_products<M, R>(x + k, x_step, w + k * w_step, total);
  }
  add_to<M, R>(total, y, y_step);
}

// Columns first to last of y += x W, with W stored [K, N], R vectors of columns and `piece` rows of W at a time; rows
// of x lie x_step apart, of y y_step.
template <int M, int R = columns_for(M)>
void in_out_rows(const float *x, int64_t x_step, const float *w, int64_t K, int64_t N, float *y, int64_t y_step,
                 int64_t first, int64_t last, int64_t piece = DEPTH) {
  for (int64_t k = 0; k < K; k += piece) {
    const int64_t depth = std::min(piece, K - k);
    const float *values = x + k, *weights = w + k * N;
    int64_t n = first;
    for (; n + R * LANES <= last; n += R * LANES) {
      outer_products<M, R>(values, x_step, weights + n, N, depth, y + n, y_step);
    }
    for (; n + LANES <= last; n += LANES) {
      outer_products<M, 1>(values, x_step, weights + n, N, depth, y + n, y_step);
    }
    for (; n < last; ++n) {
      for (int m = 0; m < M; ++m) {
        float total = 0;
        for (int64_t i = 0; i < depth; ++i) total += values[m * x_step + i] * weights[i * N + n];
        y[m * y_step + n] += total;
      }
    }
  }
}

// Call f with a number of rows, 1 to ROWS, as a constant: f(std::integral_constant<int, rows>).
template <int M = ROWS, typename F>
inline void with_rows(int64_t rows, const F &f) {
  if constexpr (M > 1) {
    if (rows < M) return with_rows<M - 1>(rows, f);
  }
  f(std::integral_constant<int, M>{});
}
