// y += x W of many rows x: W is copied, a panel of columns at a time, into the order in which it is used, and the panel
// stays in the second-level cache until all rows have been multiplied with it. The next panel is copied piece by piece
// with the products of this one, and the piece after the next is sent for during them, while the processor has little
// else to read: so it hardly waits for memory. After Goto & van de Geijn 2008, but that x is not copied.
//
// Shape letters: M rows, K width of x, N width of y.
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "huge_pages.h"
#include "room.h"
#include "vectors.h"

constexpr int PANEL_VECTORS = ACCUMULATORS == 24 ? 4 : 3;
constexpr int PANEL = PANEL_VECTORS * LANES;       // columns of W
constexpr int BLOCK = ACCUMULATORS / PANEL_VECTORS;  // rows of x that are multiplied at once with a panel
constexpr int PANEL_DEPTH = 768;  // rows of W: the fewer pieces, the fewer times y is read and written
constexpr int LINE = 64 / sizeof(float);  // of the cache

struct Weight {
  const float *values;
  bool out_in;  // stored [N, K], else [K, N]
};

// A part of y: so many rows from this one on, and columns first to last.
struct Tile {
  int64_t row, rows, first, last;
};

// A part of W that is to be sent for: `rows` of `width` numbers, `step` apart.
struct Part {
  const float *first = nullptr;
  int64_t rows = 0, step = 0, width = 0;

  int64_t before() const { return reinterpret_cast<uintptr_t>(first) / sizeof(float) % LINE; }  // in the first line
  int64_t lines() const { return rows * ((before() + width + LINE - 1) / LINE); }
};

// Sends for the lines of a part one after the other.
class Sender {
 public:
  explicit Sender(Part part) : part_(part), begin_(-part.before()), column_(begin_) {}

  void send_for(int64_t lines) {
    for (; lines > 0 && part_.rows > 0; --lines) {
      __builtin_prefetch(part_.first + column_, 0, 2);
      column_ += LINE;
      if (column_ < part_.width) continue;
      column_ = begin_;
      part_.first += part_.step;
      --part_.rows;
    }
  }

 private:
  Part part_;
  const int64_t begin_;
  int64_t column_;
};

// Copies whole rows of a panel one after the other, `step` apart in W [K, N].
struct Copier {
  const float *from = nullptr;
  int64_t rows = 0, step = 0;
  float *to = nullptr;

  void copy(int64_t count) {
    for (; count > 0 && rows > 0; --count, --rows, from += step, to += PANEL) {
      for (int i = 0; i < PANEL; i += LANES) store(to + i, load(from + i));
    }
  }
};

// What is done during products for those that follow.
struct Ahead {
  Copier copier;
  Part wanted;
};

// Copy rows k to last and `columns` columns of W [K, N] to panel[k][n], with zeros after the last column.
inline void pack_in_out(const float *w, int64_t N, int64_t k, int64_t last, int64_t columns, float *panel) {
  for (; k < last; ++k) {
    const float *row = w + k * N;
    float *to = panel + k * PANEL;
    if (columns == PANEL) {
      for (int i = 0; i < PANEL; i += LANES) store(to + i, load(row + i));
    } else {
      std::fill(std::copy(row, row + columns, to), to + PANEL, 0.0f);
    }
  }
}

// Copy columns k to last of one panel's rows of W, which lie `step` apart, turned round, to panel[k][n], with zeros
// after the last row.
inline void pack_out_in(const float *w, int64_t step, int64_t k, int64_t last, int64_t rows, float *panel) {
  for (; k + LANES <= last && rows == PANEL; k += LANES) {
    for (int64_t n = 0; n < PANEL; n += LANES) {
      Vector square[LANES];
      for (int i = 0; i < LANES; ++i) square[i] = load(w + (n + i) * step + k);
      transpose(square);
      for (int i = 0; i < LANES; ++i) store(panel + (k + i) * PANEL + n, square[i]);
    }
  }
  for (; k < last; ++k) {
    for (int64_t n = 0; n < PANEL; ++n) panel[k * PANEL + n] = n < rows ? w[n * step + k] : 0.0f;
  }
}

// y += x panel, or without ADD y = x panel, for M rows and R vectors of columns. With ADD, y is sent for, and the M rows
// of x and y after these; and meanwhile what is asked for `ahead` is done.
template <int M, int R, bool ADD = true>
inline void panel_products(const float *x, int64_t x_step, const float *panel, int64_t depth, float *y,
                           int64_t y_step, Ahead ahead = {}) {
  Vector total[M][R] = {};
  for (int m = 0; ADD && m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(y + m * y_step + r * LANES, 1, 3);
      __builtin_prefetch(y + (M + m) * y_step + r * LANES, 0, 2);
    }
  }
  Sender sender(ahead.wanted);
  Copier copier = ahead.copier;
  const int64_t steps = std::max<int64_t>(1, depth / LINE);
  const int64_t lines = (ahead.wanted.lines() + steps - 1) / steps, rows = (copier.rows + steps - 1) / steps;
  int64_t k = 0;
  for (; k + LINE <= depth; k += LINE) {
    for (int m = 0; ADD && m < M; ++m) __builtin_prefetch(x + (M + m) * x_step + k, 0, 3);
    sender.send_for(lines);
    copier.copy(rows);
#pragma GCC unroll LINE  // 2 % of a product
    for (int i = 0; i < LINE; ++i) add_products<M, R>(x + k + i, x_step, panel + (k + i) * R * LANES, total);
  }
  for (; k < depth; ++k) add_products<M, R>(x + k, x_step, panel + k * R * LANES, total);
  if constexpr (ADD) {
    add_to<M, R>(total, y, y_step);
    copier.copy(copier.rows);
  } else {
    for (int m = 0; m < M; ++m) {
      for (int r = 0; r < R; ++r) store(y + m * y_step + r * LANES, total[m][r]);
    }
  }
}

// y += x panel for at most BLOCK rows and the panel's first columns.
inline void multiply_panel(const float *x, int64_t x_step, const float *panel, int64_t depth, float *y, int64_t y_step,
                           int64_t M, int64_t columns, Ahead ahead) {
  with_rows<BLOCK>(M, [&](auto rows) {
    constexpr int R = PANEL_VECTORS;
    if (columns == PANEL) return panel_products<rows, R>(x, x_step, panel, depth, y, y_step, ahead);
    float whole[rows * PANEL] = {};
    for (int i = 0; i < rows; ++i) std::memcpy(whole + i * PANEL, y + i * y_step, columns * sizeof(float));
    panel_products<rows, R>(x, x_step, panel, depth, whole, PANEL, ahead);
    for (int i = 0; i < rows; ++i) std::memcpy(y + i * y_step, whole + i * PANEL, columns * sizeof(float));
  });
}

// The panels of W's columns first to last in the order in which they are used, a piece at a time.
class Pieces {
 public:
  // blocks: of rows, which are multiplied with each panel.
  Pieces(Weight w, int64_t K, int64_t N, int64_t first, int64_t last, int64_t blocks)
      : w_(w), K_(K), N_(N), first_(first), last_(last), n_(first) {
    const int64_t unit = w.out_in ? LANES : 1, units = (std::min<int64_t>(K, PANEL_DEPTH) + unit - 1) / unit;
    size_ = (units + blocks - 1) / blocks * unit;
  }

  int64_t panel() const { return panel_; }  // how many lie before this one

  // Copy this piece to its place in a panel.
  void pack(float *panel) const {
    if (depth() == 0) return;
    const int64_t to = std::min(depth(), from_ + size_);
    if (w_.out_in) return pack_out_in(w_.values + n_ * K_ + k_, K_, from_, to, columns(), panel);
    pack_in_out(w_.values + k_ * N_ + n_, N_, from_, to, columns(), panel);
  }

  // The same, but a whole panel's piece of W [K, N] is left to what is returned.
  Copier begin_to_pack(float *panel) const {
    if (!w_.out_in && depth() > 0 && columns() == PANEL) {
      const Part here = part();
      return {here.first, here.rows, here.step, panel + from_ * PANEL};
    }
    pack(panel);
    return {};
  }

  // Where this piece is in W.
  Part part() const {
    if (depth() == 0) return {};
    const int64_t rows = std::min(depth() - from_, size_);
    if (w_.out_in) return {w_.values + n_ * K_ + k_ + from_, columns(), K_, rows};
    return {w_.values + (k_ + from_) * N_ + n_, rows, N_, columns()};
  }

  void advance() {
    from_ += size_;
    if (from_ < depth()) return;
    from_ = 0;
    ++panel_;
    n_ += PANEL;
    if (n_ < last_) return;
    n_ = first_;
    k_ += PANEL_DEPTH;
  }

 private:
  int64_t depth() const { return std::clamp<int64_t>(K_ - k_, 0, PANEL_DEPTH); }
  int64_t columns() const { return std::min<int64_t>(PANEL, last_ - n_); }

  const Weight w_;
  const int64_t K_, N_, first_, last_;
  int64_t size_, n_, k_ = 0, from_ = 0, panel_ = 0;
};

// A tile of y += x W. For `before` and `after` see `multiply`.
template <typename Before, typename After>
inline void multiply_many(const float *x, Weight w, int64_t K, float *y, int64_t N, Tile tile, const Before &before,
                          const After &after) {
  constexpr int64_t SIZE = PANEL_DEPTH * PANEL;
  static thread_local Room room(HUGE_PAGE);  // both panels on one page, so that they lie side by side in the cache, too
  float *const panels[2] = {room.of(2 * SIZE), room.of(2 * SIZE) + SIZE};
  on_huge_pages(panels[0], 2 * SIZE);
  Pieces piece(w, K, N, tile.first, tile.last, (tile.rows + BLOCK - 1) / BLOCK);  // to be copied
  for (; piece.panel() == 0; piece.advance()) piece.pack(panels[0]);
  Pieces wanted = piece;  // to be sent for
  wanted.advance();
  int64_t number = 0;  // of the panel
  for (int64_t k = 0; k < K; k += PANEL_DEPTH) {
    const int64_t depth = std::min<int64_t>(PANEL_DEPTH, K - k);
    for (int64_t n = tile.first; n < tile.last; n += PANEL, ++number) {
      const float *panel = panels[number % 2];
      const int64_t columns = std::min<int64_t>(PANEL, tile.last - n), end = tile.row + tile.rows;
      for (int64_t m = tile.row; m < end; m += BLOCK) {
        const int64_t rows = std::min<int64_t>(BLOCK, end - m);
        Ahead ahead;
        if (piece.panel() == number + 1) {
          ahead.copier = piece.begin_to_pack(panels[piece.panel() % 2]);
          piece.advance();
          wanted.advance();
          ahead.wanted = wanted.part();
        }
        if (k == 0) before(m, rows, n, columns);
        multiply_panel(x + m * K + k, K, panel, depth, y + m * N + n, N, rows, columns, ahead);
        if (k + PANEL_DEPTH >= K) after(m, rows, n, columns);
      }
    }
  }
}
