// softmax(scale q K^T) V of one head, with keys and values as a text's cache holds them: [slots, D].
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "few_rows.h"
#include "many_rows.h"
#include "vectors.h"

inline int64_t whole_vectors(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// The highest of `count` scores; what is missing to a whole vector, for which there must be room, becomes -infinity.
inline float highest(float *scores, int64_t count) {
  const int64_t whole = whole_vectors(count);
  std::fill(scores + count, scores + whole, -INFINITY);
  Vector highest_of_lane = all(-INFINITY);
  for (int64_t i = 0; i < whole; i += LANES) {
    const Vector some = load(scores + i);
    highest_of_lane = some > highest_of_lane ? some : highest_of_lane;
  }
  return highest(highest_of_lane);
}

// scores <- exp(scale (scores - most)) in place, where most is what `highest` found of them; returns the sum of each
// lane. scale > 0.
inline Vector exponentials(float *scores, int64_t count, float most, float scale) {
  Vector total{};
  for (int64_t i = 0; i < whole_vectors(count); i += LANES) {
    const Vector e = exponential((load(scores + i) - most) * scale);  // below the last 1e-38; total >= 1
    store(scores + i, e);
    total += e;
  }
  return total;
}

inline void multiply_by(float *values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

// One query, over `count` keys.
inline void attend(const float *q, const float *keys, const float *values, int64_t count, int64_t D, float scale,
                   float *out) {
  thread_local std::vector<float> weights;
  weights.assign(count + LANES, 0.0f);
  out_in_rows<1>(q, keys, D, weights.data(), count, 0, count);
  const float total = sum(exponentials(weights.data(), count, highest(weights.data(), count), scale));
  std::fill(out, out + D, 0.0f);
  in_out_rows<1>(weights.data(), count, values, count, D, out, D, 0, D);
  multiply_by(out, D, 1.0f / total);
}

// One head's part of tokens that lie one after another: of each the first element is `step` after that of the token
// before it.
struct Head {
  const float *first;
  int64_t step;
};

// The tokens of texts that lie one after another from slot 0 on: `rows` of them, and the position that each has in
// its text. Each sees its text up to itself, but of others only those that are `seen` (rows,), unless that is null.
inline void attend_within_texts(Head q, Head keys, Head values, const int32_t *positions, const int32_t *seen,
                                int64_t rows, int64_t D, float scale, float *out) {
  thread_local std::vector<float> turned_keys, weights;  // keys as panels [D][PANEL]; weights of BLOCK queries
  const int64_t panels = (rows + PANEL - 1) / PANEL, width = panels * PANEL + LANES;
  turned_keys.resize(panels * D * PANEL);
  for (int64_t p = 0; p < panels; ++p) {
    const float *panel = keys.first + p * PANEL * keys.step;
    pack_out_in(panel, keys.step, 0, D, std::min<int64_t>(PANEL, rows - p * PANEL), &turned_keys[p * D * PANEL]);
  }
  weights.resize(BLOCK * width);
  for (int64_t first = 0, end; first < rows; first = end) {
    end = first + 1;  // queries of one text, so that how its sums are added up does not depend on where it lies
    while (end < std::min(rows, first + BLOCK) && positions[end] > 0) ++end;
    const int64_t count = end - first, begin = first - positions[first];
    for (int64_t t = first; t < std::min(rows, end + BLOCK); ++t) {  // the queries that follow, and room for results
      const float *sent_for = t < end ? out : q.first;
      for (int64_t d = 0; d < D; d += LINE) __builtin_prefetch(sent_for + t * q.step + d);
    }
    for (int64_t p = begin / PANEL; p * PANEL < end; ++p) {
      with_rows<BLOCK>(count, [&](auto m) {
        panel_products<m, PANEL_VECTORS, false>(q.first + first * q.step, q.step, &turned_keys[p * D * PANEL], D,
                                                &weights[p * PANEL], width);
      });
    }
    float highest_of[BLOCK];  // found for all queries before exponentials are made: so none waits for another
    Vector totals[BLOCK];
    for (int64_t t = first; t < end; ++t) {
      float *mine = &weights[(t - first) * width];
      for (int64_t other = begin; seen != nullptr && other < t; ++other) {
        if (seen[other] == 0) mine[other] = -INFINITY;
      }
      highest_of[t - first] = highest(mine + begin, t + 1 - begin);
    }
    for (int64_t t = first; t < end; ++t) {
      float *mine = &weights[(t - first) * width];
      totals[t - first] = exponentials(mine + begin, t + 1 - begin, highest_of[t - first], scale);
      std::fill(mine + t + 1, mine + end, 0.0f);
      std::fill_n(out + t * q.step, D, 0.0f);
    }
    with_rows<BLOCK>(count, [&](auto m) {
      in_out_rows<m, PANEL_VECTORS>(&weights[begin], width, values.first + begin * values.step, end - begin,
                                    values.step, out + first * q.step, q.step, 0, D, end - begin);
    });
    for (int64_t t = first; t < end; ++t) multiply_by(out + t * q.step, D, 1.0f / sum(totals[t - first]));
  }
}
