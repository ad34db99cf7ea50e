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

// y += x W for a tile of y. It is done in blocks: before(m, rows, n, columns) is to make what is added to, and
// after(m, rows, n, columns) gets what has come out, while both are in the cache.
template <typename Before, typename After>
inline void multiply(const float *x, Weight w, int64_t M, int64_t K, float *y, int64_t N, Tile tile,
                     const Before &before, const After &after) {
  if (M == 0) return;
  if (M > ROWS) return multiply_many(x, w, K, y, N, tile, before, after);
  const auto [m, rows, first, last] = tile;
  before(m, rows, first, last - first);
  with_rows(rows, [&, first = first, last = last, x = x + m * K, y = y + m * N](auto rows) {
    if (w.out_in) {
      out_in_rows<rows>(x, w.values, K, y, N, first, last);
    } else {
      in_out_rows<rows>(x, K, w.values, K, N, y, N, first, last);
    }
  });
  after(m, rows, first, last - first);
}

// For a product whose results are left as they are.
inline void nothing(int64_t, int64_t, int64_t, int64_t) {}

// The first row of one of so many parts of M rows.
inline int64_t first_row(int64_t part, int64_t parts, int64_t M) { return M * part / parts; }

// The tiles that y is made in.
//
// Of many rows each thread has some, which mostly stay in its cache from one product to the next, as long as all have
// enough of them to copy all of W for. Where they have not, and always of few rows, the columns are shared out: in
// whole panels, and tiles enough for all threads to end together; of many rows not so few that a tile's first panel,
// which nothing is multiplied meanwhile, counts; of few rows and W [N, K], where a tile is one piece of memory, small
// ones.
class Tiles {
 public:
  Tiles(bool out_in, int64_t M, int64_t N, int64_t K) : M_(M), N_(N) {
    constexpr int64_t ENOUGH = 128, SMALL = 384 * 1024 / sizeof(float), FEW = 8 * PANEL;
    const int64_t threads = Workers::get().count();
    groups_ = std::clamp<int64_t>(M / ENOUGH, 1, threads);
    const int64_t threads_of_a_group = (threads + groups_ - 1) / groups_;
    width_ = N / (2 * threads_of_a_group);
    if (M > ROWS && width_ < FEW) width_ = (N + threads_of_a_group - 1) / threads_of_a_group + PANEL - 1;
    if (out_in && M <= ROWS) width_ = std::min(width_, SMALL / K);
    width_ = std::max<int64_t>(PANEL, width_ / PANEL * PANEL);
  }

  int64_t count() const { return groups_ * ((N_ + width_ - 1) / width_); }

  Tile operator[](int64_t i) const {
    const int64_t group = i % groups_, first = i / groups_ * width_, row = first_row(group, groups_, M_);
    return {row, first_row(group + 1, groups_, M_) - row, first, std::min(N_, first + width_)};
  }

 private:
  const int64_t M_, N_;
  int64_t groups_, width_;
};
