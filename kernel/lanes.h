// Arithmetic on LANES numbers at a time with the compiler's vector types. The same source compiles to AVX2 or NEON with
// eight lanes, and to AVX-512 with sixteen. A file that needs sixteen defines STEC_LANES before it includes this.
#pragma once

#ifndef STEC_LANES
#define STEC_LANES 8
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#if STEC_LANES == 16
#include <immintrin.h>
#endif

// By default, x86-64 compilers use neither AVX2 nor AVX-512. These pragmas enable them for g++, so code that includes
// this header must run only if score.cpp has checked the processor. Another compiler needs -mavx2 -mfma, and compiles
// the same source to slower code without them.
//
// The linker keeps one copy of an inline function or template that several files compile. A copy with AVX-512 must not
// replace one without it, so there are two rules, which tests/kernel/test_library.py checks:
// - Code below the pragmas belongs to a namespace that is named after the width.
// - Standard headers are included above the pragmas. Their templates are then compiled without AVX-512 everywhere.
#if STEC_LANES == 16
#define STEC_WIDTH sixteen
#pragma GCC target("avx2,fma,avx512f")
#else
#define STEC_WIDTH eight
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")
#endif
#endif

namespace stec::STEC_WIDTH {

constexpr int LANES = STEC_LANES;

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Lanes all(float value) { return Lanes{} + value; }

inline void copy(const Lanes* from, int64_t count, Lanes* to) { std::memcpy(to, from, size_t(count) * sizeof(Lanes)); }

#if STEC_LANES == 16
// The intrinsics without a mask make g++ 12 warn about an uninitialized variable in its own header.
constexpr __mmask16 EVERY_LANE = 0xffff;
#endif

// Returns b if either is NaN.
inline Lanes larger(Lanes a, Lanes b) {
#if STEC_LANES == 16
  return _mm512_maskz_max_ps(EVERY_LANE, a, b);  // g++ compiles the expression below to two instructions.
#else
  return a > b ? a : b;
#endif
}

// Returns e^x for x <= 0 with an error of about one unit in the last place: 2^n times a polynomial on
// [-ln 2 / 2, ln 2 / 2].
inline Lanes exp_of_negative(Lanes x) {
  const Lanes rounding = all(12582912.0f);  // 1.5 * 2^23: adding it puts the nearest integer into the low bits
  x = larger(x, all(-87.0f));
  const Lanes shifted = x * 1.44269504f + rounding, n = shifted - rounding;
  const Lanes r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Lanes p = all(1.98756915e-4f);
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345241e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666656e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  // The low bits of `shifted` hold the integer n. The exponent of a float has a bias of 127 and lies above its 23 bits
  // of fraction.
  const Integers exponent = ((Integers)shifted - (Integers)rounding + 127) << 23;
  return p * (Lanes)exponent;
}

inline Lanes inverse_root(Lanes x) {
#if STEC_LANES == 16
  return 1.0f / (Lanes)_mm512_maskz_sqrt_ps(EVERY_LANE, x);
#else
  float roots[LANES];  // Goes through memory, because the compiler does not vectorize square roots of single lanes.
  std::memcpy(roots, &x, sizeof x);
  for (float& root : roots) root = std::sqrt(root);
  std::memcpy(&x, roots, sizeof x);
  return 1.0f / x;
#endif
}

// What to do with a product before it is stored.
enum class Then { AddBias, AddBiasAndRelu, AddTo };

// A matrix of Lanes. Element (row, column) is at index row * row_step + column * column_step.
struct Matrix {
  Lanes* data = nullptr;
  int64_t row_step = 0, column_step = 1;

  Lanes* at(int64_t row, int64_t column) const { return data + row * row_step + column * column_step; }
  Matrix from(int64_t row, int64_t column) const { return {at(row, column), row_step, column_step}; }
};

// Loads a value once. Without this, g++ loads it again for each of its uses, which takes as long as the products.
inline Lanes loaded(const Lanes& value) {
  Lanes copy = value;
#if defined(__AVX__)
  asm("" : "+v"(copy));
#endif
  return copy;
}

inline float loaded(float value) { return value; }

// Computes O outputs for C columns: sum over depth of a[depth][output] * x[depth][column]. All sums stay in registers.
template <int O, int C, class A>
inline void sums(const A* a, int64_t a_step, const Lanes* x, int64_t x_step, int64_t depth, Lanes (&sum)[O][C]) {
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[o][c] = Lanes{};
  for (int64_t d = 0; d < depth; ++d, a += a_step, x += x_step) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const A factor = loaded(a[o]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[o][c] += factor * x[c];
    }
  }
}

template <Then then, int O, int C, class A>
inline void tile(const A* a, int64_t a_step, const Lanes* x, int64_t x_step, int64_t depth, const float* bias,
                 Matrix base, Matrix y) {
  Lanes sum[O][C];
  sums<O, C>(a, a_step, x, x_step, depth, sum);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      Lanes value = sum[o][c];
      if (then == Then::AddTo) value += *base.at(0, c);
      else if (bias) value += bias[o];
      // With the operands in this order, NaN stays NaN.
      if (then == Then::AddBiasAndRelu) value = larger(Lanes{}, value);
      *y.at(0, c) = value;
    }
    base.data += base.row_step, y.data += y.row_step;
  }
}

// y[output][column] = sum over depth of a[depth][output] * x[depth][column], plus the bias or base[output][column].
template <Then then = Then::AddBias, class A>
void product(const A* a, int64_t a_step, int64_t outputs, const Lanes* x, int64_t x_step, int64_t columns,
             int64_t depth, const float* bias, Matrix y, Matrix base = {}) {
  int64_t o = 0;
  const auto strip = [&]<int O>() {
    const float* b = bias ? bias + o : nullptr;
    int64_t c = 0;
    const auto step = [&]<int C>() {
      const Matrix own_base = then == Then::AddTo ? base.from(o, c) : base;
      tile<then, O, C>(a + o, a_step, x + c, x_step, depth, b, own_base, y.from(o, c));
      c += C;
    };
    while (c + 3 <= columns) step.template operator()<3>();
    if (c + 2 <= columns) step.template operator()<2>();
    if (c < columns) step.template operator()<1>();
    o += O;
  };
  // Tiles of 8 x 3 sums need the 32 registers of AVX-512.
  if constexpr (LANES == 16)
    while (o + 8 <= outputs) strip.template operator()<8>();
  while (o + 4 <= outputs) strip.template operator()<4>();
  if constexpr (LANES == 16)
    if (o + 2 <= outputs) strip.template operator()<2>();
  while (o < outputs) strip.template operator()<1>();
}

}  // namespace stec::STEC_WIDTH
