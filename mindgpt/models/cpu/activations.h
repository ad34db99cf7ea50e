// What the feed-forward layer puts in between, in place.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

// In the order of `ACTIVATIONS` in kernels.py.
enum class Activation { gelu, gelu_erf, fast_gelu, silu, relu };

// x sigmoid(2 s x (1 + c x^2)): with s and c of their own, GELU in its tanh form, since (1 + tanh u) / 2 = sigmoid(2
// u), fast GELU and SiLU.
struct Gate {
  float s, c;

  Vector operator()(Vector x) const {
    const float linear = -2.0f * s, cubic = linear * c;
    return x / (exponential(x * (x * cubic * x + linear)) + 1.0f);  // x c x, not x x c: 0 for all finite x, if c is
  }
};

// x (1 + erf(x / sqrt(2))) / 2, with erf within 1.5e-7: Abramowitz & Stegun 1964, 7.1.26.
inline Vector gelu_erf(Vector x) {
  const Vector u = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (u * 0.3275911f + 1.0f);
  Vector p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector missing = p * t * exponential(-u * u);  // 1 - erf(u)
  return x * 0.5f * (x < 0.0f ? missing : 2.0f - missing);
}

// For `rows` of `columns` numbers that are `step` apart.
template <typename F>
inline void activate_by(const F &f, float *x, int64_t step, int64_t rows, int64_t columns) {
  for (; rows > 0; --rows, x += step) {
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) store(x + i, f(load(x + i)));
    if (i == columns) continue;
    float rest[LANES] = {};
    std::copy(x + i, x + columns, rest);
    store(rest, f(load(rest)));
    std::copy_n(rest, columns - i, x + i);
  }
}

inline void activate(Activation activation, float *x, int64_t step, int64_t rows, int64_t columns) {
  switch (activation) {
    case Activation::gelu:
      return activate_by(Gate{0.7978845608f, 0.044715f}, x, step, rows, columns);
    case Activation::gelu_erf:
      return activate_by(gelu_erf, x, step, rows, columns);
    case Activation::fast_gelu:
      return activate_by(Gate{0.851f, 0.0f}, x, step, rows, columns);
    case Activation::silu:
      return activate_by(Gate{0.5f, 0.0f}, x, step, rows, columns);
    case Activation::relu:
      return activate_by([](Vector v) { return v < 0.0f ? all(0.0f) : v; }, x, step, rows, columns);
  }
}
