// softmax(scale q K^T) V of one head, with keys and values as a text's cache holds them: [slots, D].
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "few_rows.h"
#include "many_rows.h"
#include "vectors.h"

// weights <- exp(scale (weights - the highest)) in place, for `count` of them and what is missing to a whole vector;
// returns what they are to be multiplied with to be the softmax. scale > 0.
inline float exponentials(float *weights, int64_t count, float scale) {
  const int64_t whole = (count + LANES - 1) / LANES * LANES;
  std::fill(weights + count, weights + whole, -INFINITY);
  Vector highest_of_lane = all(-INFINITY);
  for (int64_t i = 0; i < whole; i += LANES) {
    const Vector scores = load(weights + i);
    highest_of_lane = scores > highest_of_lane ? scores : highest_of_lane;
  }
  float highest = -INFINITY;
  for (int lane = 0; lane < LANES; ++lane) highest = std::max(highest, highest_of_lane[lane]);
  Vector total{};
  for (int64_t i = 0; i < whole; i += LANES) {
    const Vector e = exponential((load(weights + i) - highest) * scale);  // behind the last 1e-38: the total is >= 1
    store(weights + i, e);
    total += e;
  }
  return 1.0f / sum(total);
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
  const float per_total = exponentials(weights.data(), count, scale);
  std::fill(out, out + D, 0.0f);
  in_out_rows<1>(weights.data(), count, values, count, D, out, D, 0, D);
  multiply_by(out, D, per_total);
}

// The tokens of texts that lie one behind the other from slot 0 on; each sees its text up to itself. `rows` queries,
// which like the rows of `out` lie `step` apart, and the position that each has in its text.
inline void attend_within_texts(const float *q, const float *keys, const float *values, const int32_t *positions,
                                int64_t rows, int64_t step, int64_t D, float scale, float *out) {
  thread_local std::vector<float> turned_keys, weights;  // keys as panels [D][PANEL]; weights of ROWS queries
  const int64_t panels = (rows + PANEL - 1) / PANEL, width = panels * PANEL + LANES;
  turned_keys.resize(panels * D * PANEL);
  for (int64_t p = 0; p < panels; ++p) {
    pack_out_in(keys + p * PANEL * D, D, D, std::min<int64_t>(PANEL, rows - p * PANEL), &turned_keys[p * D * PANEL]);
  }
  weights.resize(ROWS * width);
  for (int64_t first = 0, end; first < rows; first = end) {
    end = first + 1;  // queries of one text, so that how its sums are added up does not depend on where it lies
    while (end < std::min(rows, first + ROWS) && positions[end] > 0) ++end;
    const int64_t count = end - first, begin = first - positions[first];
    std::fill(weights.begin(), weights.end(), 0.0f);
    for (int64_t p = begin / PANEL; p * PANEL < end; ++p) {
      multiply_panel(q + first * step, step, &turned_keys[p * D * PANEL], D, &weights[p * PANEL], width, count, PANEL);
    }
    float per_total[ROWS];
    for (int64_t t = first; t < end; ++t) {
      float *mine = &weights[(t - first) * width];
      per_total[t - first] = exponentials(mine + begin, t + 1 - begin, scale);
      std::fill(mine + t + 1, mine + width, 0.0f);
      std::fill(out + t * step, out + t * step + D, 0.0f);
    }
    with_rows(count, [&](auto m) {
      in_out_rows<m>(&weights[begin], width, values + begin * D, end - begin, D, out + first * step, step, 0, D);
    });
    for (int64_t t = first; t < end; ++t) multiply_by(out + t * step, D, per_total[t - first]);
  }
}
