// Arithmetic on eight numbers at a time with the compiler's vector types. The same source compiles to AVX2 or NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// By default, x86-64 compilers do not use AVX2. This pragma enables it for g++, so code that includes this header must
// run only if stec_processor_can() in op.cpp returns true. Another compiler needs -mavx2 -mfma, and compiles the same
// source to slower code without them.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")
#endif

namespace stec {

constexpr int LANES = 8;

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Lanes all(float value) { return Lanes{} + value; }

inline void copy(const Lanes* from, int64_t count, Lanes* to) { std::memcpy(to, from, size_t(count) * sizeof(Lanes)); }

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

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
  float roots[LANES];  // Goes through memory, because the compiler does not vectorize square roots of single lanes.
  std::memcpy(roots, &x, sizeof x);
  for (float& root : roots) root = std::sqrt(root);
  std::memcpy(&x, roots, sizeof x);
  return 1.0f / x;
}

// What to do with a product before it is stored.
enum class Then { AddBias, AddBiasAndRelu, AddTo };

// A matrix of Lanes. Element (row, column) is at index row * row_step + column * column_step.
struct Matrix {
  Lanes* data;
  int64_t row_step, column_step = 1;

  Lanes* at(int64_t row, int64_t column) const { return data + row * row_step + column * column_step; }
};

// Computes O outputs for C columns: sum over depth of a[depth][output] * x[depth][column]. All sums stay in registers.
template <int O, int C, class A>
inline void sums(const A* a, int64_t a_step, const Lanes* x, int64_t x_step, int64_t depth, Lanes (&sum)[O][C]) {
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[o][c] = Lanes{};
  for (int64_t d = 0; d < depth; ++d, a += a_step, x += x_step) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[o][c] += a[o] * x[c];
  }
}

template <Then then, int O, int C, class A>
inline void tile(const A* a, int64_t a_step, const Lanes* x, int64_t x_step, int64_t depth, const float* bias,
                 const Lanes* base, Matrix y) {
  Lanes sum[O][C];
  sums<O, C>(a, a_step, x, x_step, depth, sum);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      Lanes value = sum[o][c];
      const int64_t place = o * y.row_step + c * y.column_step;
      if (then == Then::AddTo) value += base[place];
      else if (bias) value += bias[o];
      // With the operands in this order, NaN stays NaN.
      if (then == Then::AddBiasAndRelu) value = larger(Lanes{}, value);
      y.data[place] = value;
    }
}

// y[output][column] = sum over depth of a[depth][output] * x[depth][column], plus the bias or `base`, which has the
// layout of y.
template <Then then = Then::AddBias, class A>
void product(const A* a, int64_t a_step, int64_t outputs, const Lanes* x, int64_t x_step, int64_t columns,
             int64_t depth, const float* bias, Matrix y, const Lanes* base = nullptr) {
  int64_t o = 0;
  const auto strip = [&]<int O>() {
    const float* b = bias ? bias + o : nullptr;
    int64_t c = 0;
    const auto step = [&]<int C>() {
      const int64_t place = o * y.row_step + c * y.column_step;
      tile<then, O, C>(a + o, a_step, x + c, x_step, depth, b, base ? base + place : nullptr,
                       {y.data + place, y.row_step, y.column_step});
      c += C;
    };
    while (c + 3 <= columns) step.template operator()<3>();
    if (c + 2 <= columns) step.template operator()<2>();
    if (c < columns) step.template operator()<1>();
    o += O;
  };
  while (o + 4 <= outputs) strip.template operator()<4>();
  while (o < outputs) strip.template operator()<1>();
}

}  // namespace stec
