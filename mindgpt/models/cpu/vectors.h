// Vectors of floats as wide as the processor's registers, by GCC's vector extension.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int ACCUMULATORS = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int ACCUMULATORS = 12;  // of 16 registers
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int ACCUMULATORS = 24;  // of 32 registers
#else
constexpr int LANES = 4;
constexpr int ACCUMULATORS = 12;
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vector load(const float *from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float *to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline Vector all(float value) { return value - Vector{}; }  // x - 0 is x, bit for bit, and costs nothing

// rows[i][j] <-> rows[j][i], for a square of them: halves of single elements, of pairs, of fours... change places.
// HALF is a constant so that the compiler unrolls it all: the square then stays in registers.
template <int HALF = 1>
inline void transpose(Vector *rows) {
  if constexpr (HALF < LANES) {
    Integers low, high;  // in the first of two rows, in the second; numbers from LANES on are the second's elements
    for (int lane = 0; lane < LANES; ++lane) {
      low[lane] = lane & HALF ? LANES + lane - HALF : lane;
      high[lane] = lane & HALF ? LANES + lane : lane + HALF;
    }
    for (int i = 0; i < LANES; i += 2 * HALF) {
      for (int j = i; j < i + HALF; ++j) {
        const Vector first = rows[j], second = rows[j + HALF];
        rows[j] = __builtin_shuffle(first, second, low);
        rows[j + HALF] = __builtin_shuffle(first, second, high);
      }
    }
    transpose<2 * HALF>(rows);
  }
}

// f of all N numbers, halves first: f(f(a, c), f(b, d)). f works on vectors and on single numbers.
template <int N, typename F>
inline float fold(const float *values, const F &f) {
  if constexpr (N == 1) {
    return values[0];
  } else {
    typedef float Half __attribute__((vector_size(N / 2 * sizeof(float))));
    Half low, high;
    std::memcpy(&low, values, sizeof low);
    std::memcpy(&high, values + N / 2, sizeof high);
    low = f(low, high);
    return fold<N / 2>(reinterpret_cast<const float *>(&low), f);
  }
}

inline float sum(Vector v) {
  return fold<LANES>(reinterpret_cast<const float *>(&v), [](auto a, auto b) { return a + b; });
}

inline float highest(Vector v) {
  return fold<LANES>(reinterpret_cast<const float *>(&v), [](auto a, auto b) { return a > b ? a : b; });
}

// The sum of f(x[i]), where f works on vectors and on single numbers.
template <typename F>
inline float sum(const float *x, int64_t size, const F &f) {
  constexpr int TOTALS = 4;  // as many sums go on at once: one alone would wait for each addition
  Vector total[TOTALS] = {};
  int64_t i = 0;
  for (; i + TOTALS * LANES <= size; i += TOTALS * LANES) {
    for (int t = 0; t < TOTALS; ++t) total[t] += f(load(x + i + t * LANES));
  }
  for (; i + LANES <= size; i += LANES) total[0] += f(load(x + i));
  float result = sum((total[0] + total[1]) + (total[2] + total[3]));
  for (; i < size; ++i) result += f(x[i]);
  return result;
}

// e^x, off by at most 2 in the last place: 2^n times a polynomial in what is left of x, |rest| <= ln(2) / 2, with the
// coefficients of e^rest's Taylor series to the seventh power. Below -87 it is e^-87, above 88.4 infinite.
inline Vector exponential(Vector x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 89.0f ? all(89.0f) : x;
  const Vector shift = all(12582912.0f);                         // 1.5 * 2^23: adding it rounds to a whole number
  const Vector n = (x * 1.44269504f + shift) - shift;
  const Vector rest = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, the first exact in few bits
  Vector p = all(1.0f / 5040);
  p = p * rest + 1.0f / 720;
  p = p * rest + 1.0f / 120;
  p = p * rest + 1.0f / 24;
  p = p * rest + 1.0f / 6;
  p = p * rest + 0.5f;
  p = p * rest + 1.0f;
  p = p * rest + 1.0f;
  const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector power;
  std::memcpy(&power, &exponent, sizeof power);
  return p * power;
}
