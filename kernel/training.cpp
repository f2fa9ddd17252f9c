// The operations on all pairs of fields in training, forward and backward: the batch statistics and logit of a level
// (model/stec/factorized.py), and attention. They do not store a number for each pair and row. model/stec/fused.py
// calls these functions.
// Legend: B rows, F fields, D width, H heads, K = D / H. Rows are stored as [B][F][D], and pairs as [D][F][F].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "lanes.h"
#include "memory.h"

namespace stec::STEC_WIDTH {
namespace {

// Aligned like Lanes, because both use the same memory.
typedef double Doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(Lanes))));

constexpr int64_t BLOCK = 32;  // rows that stay in the L2 cache while all of their dimensions are processed
constexpr int64_t GROUP = 4;   // rows of a block that are summed in registers

thread_local Memory memory;

struct Rows {
  int64_t count, fields, width;

  int64_t numbers() const { return fields * width; }
  int64_t pairs() const { return fields * fields; }
  int64_t tiles() const { return (width + LANES - 1) / LANES; }
  // Returns the number of dimensions in a tile. Only the last tile may have fewer than LANES, with zeros in the others.
  int64_t lanes(int64_t tile) const { return std::min<int64_t>(LANES, width - tile * LANES); }
};

inline Lanes load(const float* from, int64_t lanes) {
  Lanes value{};
  if (lanes == LANES) std::memcpy(&value, from, sizeof value);
  else std::memcpy(&value, from, size_t(lanes) * sizeof(float));
  return value;
}

inline void store(Lanes value, int64_t lanes, float* to) {
  if (lanes == LANES) std::memcpy(to, &value, sizeof value);
  else std::memcpy(to, &value, size_t(lanes) * sizeof(float));
}

inline float sum(Lanes value) {
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += value[lane];
  return total;
}

// Loads one tile of every field of a row.
inline void load_fields(const float* row, Rows s, int64_t tile, Lanes* to) {
  for (int64_t field = 0; field < s.fields; ++field)
    to[field] = load(row + field * s.width + tile * LANES, s.lanes(tile));
}

// Converts [D][F][F] to [tile][F][F] with one dimension per lane.
void pack(const float* pairs, Rows s, Lanes* to) {
  std::fill(to, to + s.tiles() * s.pairs(), Lanes{});
  for (int64_t d = 0; d < s.width; ++d)
    for (int64_t pair = 0; pair < s.pairs(); ++pair) to[d / LANES * s.pairs() + pair][d % LANES] = *pairs++;
}

// Adds one tile of up to GROUP rows to sums[F][F], and to squares[F][F] if requested. The sums are doubles: for a field
// that is nearly constant, subtracting the mean in float would lose the whole variance.
template <bool with_squares>
void add_group(const Doubles* left, const Doubles* right, int64_t fields, Doubles* sums, Doubles* squares) {
  for (int64_t i = 0; i < fields; ++i) {
    const Doubles* const l = left + i * GROUP;
    for (int64_t j = 0; j < fields; ++j) {
      const Doubles* const r = right + j * GROUP;
      const Doubles a = l[0] * r[0], b = l[1] * r[1], c = l[2] * r[2], d = l[3] * r[3];
      sums[i * fields + j] += (a + b) + (c + d);
      if (with_squares) squares[i * fields + j] += (a * a + b * b) + (c * c + d * d);
    }
  }
}

// first[D][F][F] = sum over rows of scale * left * right. second[D][F][F], if not null, is the sum of their squares.
// A null scale means 1.
void moments(const float* left, const float* right, const float* scale, Rows s, double* first, double* second) {
  const int64_t pairs = s.pairs(), sums = s.tiles() * pairs, group = s.fields * GROUP;
  auto* const taken = reinterpret_cast<Doubles*>(memory.at_least(2 * (2 * sums + 2 * group)));
  Doubles *const squares = taken + sums, *const l = squares + sums, *const r = l + group;
  std::fill(taken, l, Doubles{});
  for (int64_t block = 0; block < s.count; block += BLOCK)
    for (int64_t tile = 0; tile < s.tiles(); ++tile)
      for (int64_t row = block; row < std::min(block + BLOCK, s.count); row += GROUP) {
        for (int64_t g = 0; g < GROUP; ++g)
          for (int64_t field = 0; field < s.fields; ++field) {
            const bool is_there = row + g < s.count;  // missing rows of the last group add nothing
            const int64_t at = (row + g) * s.numbers() + field * s.width + tile * LANES;
            const Lanes a = is_there ? load(left + at, s.lanes(tile)) * (scale ? scale[row + g] : 1.0f) : Lanes{};
            const Lanes b = is_there ? load(right + at, s.lanes(tile)) : Lanes{};
            l[field * GROUP + g] = __builtin_convertvector(a, Doubles);
            r[field * GROUP + g] = __builtin_convertvector(b, Doubles);
          }
        if (second) add_group<true>(l, r, s.fields, taken + tile * pairs, squares + tile * pairs);
        else add_group<false>(l, r, s.fields, taken + tile * pairs, nullptr);
      }
  for (int64_t d = 0; d < s.width; ++d)
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t at = d / LANES * pairs + pair;
      *first++ = taken[at][d % LANES];
      if (second) *second++ = squares[at][d % LANES];
    }
}

// logit[B] = sum over d, i, j of left[i][d] * a[d][i][j] * right[j][d].
void logits(const float* left, const float* right, const float* a, Rows s, float* logit) {
  Lanes* const packed = memory.at_least(s.tiles() * s.pairs() + 2 * s.fields);
  Lanes *const l = packed + s.tiles() * s.pairs(), *const r = l + s.fields;
  pack(a, s, packed);
  for (int64_t row = 0; row < s.count; ++row) {
    Lanes total{};
    for (int64_t tile = 0; tile < s.tiles(); ++tile) {
      load_fields(left + row * s.numbers(), s, tile, l), load_fields(right + row * s.numbers(), s, tile, r);
      const Lanes* weight = packed + tile * s.pairs();
      for (int64_t i = 0; i < s.fields; ++i) {
        Lanes met{};
        for (int64_t j = 0; j < s.fields; ++j) met += *weight++ * r[j];
        total += l[i] * met;
      }
    }
    logit[row] = sum(total);
  }
}

// by_left[i] = sum over j of t * right[j] and by_right[j] = sum over i of t * left[i], where for each row and dimension
// t[i][j] = scale * a[i][j] + slope[i][j] * (left[i] * right[j] - mean[i][j]). A null scale means 1. Without is_curved,
// the slope is 0.
template <bool is_curved>
void gradient(const float* left, const float* right, const float* scale, const float* a, const float* slope,
              const float* mean, Rows s, float* by_left, float* by_right) {
  const int64_t pairs = s.pairs(), all_pairs = s.tiles() * pairs;
  Lanes* const as = memory.at_least(3 * all_pairs + 3 * s.fields);
  Lanes *const slopes = as + all_pairs, *const means = slopes + all_pairs;
  Lanes *const l = means + all_pairs, *const r = l + s.fields, *const to_right = r + s.fields;
  pack(a, s, as);
  if (is_curved) pack(slope, s, slopes), pack(mean, s, means);
  for (int64_t block = 0; block < s.count; block += BLOCK)
    for (int64_t tile = 0; tile < s.tiles(); ++tile)
      for (int64_t row = block; row < std::min(block + BLOCK, s.count); ++row) {
        const int64_t start = row * s.numbers();
        load_fields(left + start, s, tile, l), load_fields(right + start, s, tile, r);
        std::fill(to_right, to_right + s.fields, Lanes{});
        const Lanes factor = all(scale ? scale[row] : 1.0f);
        int64_t pair = tile * pairs;
        for (int64_t i = 0; i < s.fields; ++i) {
          Lanes to_left{};
          for (int64_t j = 0; j < s.fields; ++j, ++pair) {
            Lanes t = factor * as[pair];
            if (is_curved) t += slopes[pair] * (l[i] * r[j] - means[pair]);
            to_left += t * r[j];
            to_right[j] += t * l[i];
          }
          store(to_left, s.lanes(tile), by_left + start + i * s.width + tile * LANES);
        }
        for (int64_t j = 0; j < s.fields; ++j)
          store(to_right[j], s.lanes(tile), by_right + start + j * s.width + tile * LANES);
      }
}

// Converts [rows][numbers] to [numbers] with one row per lane. Lanes without a row repeat the first row.
void gather(const float* from, int64_t rows, int64_t numbers, Lanes* to) {
  for (int64_t n = 0; n < numbers; ++n)
    for (int64_t lane = 0; lane < LANES; ++lane) to[n][lane] = from[(lane < rows ? lane : 0) * numbers + n];
}

void scatter(const Lanes* from, int64_t rows, int64_t numbers, float* to) {
  for (int64_t lane = 0; lane < rows; ++lane)
    for (int64_t n = 0; n < numbers; ++n) *to++ = from[n][lane];
}

void transpose(const Lanes* from, int64_t rows, int64_t columns, Lanes* to) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) to[column * rows + row] = *from++;
}

// Attention (Eq. 5 and 6) for eight rows at a time. The arrays of a head are parts of the [F][D] and [D][F] arrays of
// all heads.
class Attention {
 public:
  Attention(Rows rows, int64_t heads, float divisor, const uint8_t* allowed)
      : F(rows.fields), D(rows.width), H(heads), K(D / H), divisor(divisor), allowed(allowed) {
    Lanes* at = memory.at_least(11 * F * D + 4 * F * F);
    for (Lanes** array : {&q, &k, &v, &out, &q_t, &k_t, &v_t, &out_t, &by_q, &by_k, &by_v}) *array = at, at += F * D;
    for (Lanes** array : {&w, &w_t, &s, &s_t}) *array = at, at += F * F;
  }

  // All pointers point to the first of `rows` rows, of which there are at most eight.
  void forward(const float* queries, const float* keys, const float* values, int64_t rows, float* to) {
    load(queries, keys, values, rows);
    for (int64_t h = 0; h < H; ++h) {
      weigh(h);
      product(w_t, F, F, v + h * K, D, K, F, nullptr, {out + h * K, D});
    }
    scatter(out, rows, F * D, to);
  }

  void backward(const float* queries, const float* keys, const float* values, const float* by_out, int64_t rows,
                float* by_queries, float* by_keys, float* by_values) {
    load(queries, keys, values, rows);
    gather(by_out, rows, F * D, out);
    transpose(v, F, D, v_t), transpose(out, F, D, out_t);
    for (int64_t h = 0; h < H; ++h) {
      weigh(h);
      product(v_t + h * K * F, F, F, out_t + h * K * F, F, F, K, nullptr, {s_t, F});
      unsoften();
      transpose(w_t, F, F, w), transpose(s_t, F, F, s);
      product(w, F, F, out + h * K, D, K, F, nullptr, {by_v + h * K, D});
      product(s_t, F, F, k + h * K, D, K, F, nullptr, {by_q + h * K, D});
      product(s, F, F, q + h * K, D, K, F, nullptr, {by_k + h * K, D});
    }
    scatter(by_q, rows, F * D, by_queries), scatter(by_k, rows, F * D, by_keys), scatter(by_v, rows, F * D, by_values);
  }

 private:
  const int64_t F, D, H, K;
  const float divisor;
  const uint8_t* const allowed;  // [F][F]: whether a field may attend to another; null: every field may
  Lanes *q, *k, *v, *out, *q_t, *k_t, *v_t, *out_t, *by_q, *by_k, *by_v;  // [F][D], except *_t, which are [D][F]
  Lanes *w, *w_t, *s, *s_t;  // weights and gradient of the scores of a head: [attending][attended]; *_t: transposed

  void load(const float* queries, const float* keys, const float* values, int64_t rows) {
    gather(queries, rows, F * D, q), gather(keys, rows, F * D, k), gather(values, rows, F * D, v);
    transpose(q, F, D, q_t), transpose(k, F, D, k_t);
  }

  bool may(int64_t attends, int64_t attended) const { return !allowed || allowed[attends * F + attended]; }

  // w_t[attended][attending] = softmax over attended of q k / divisor.
  void weigh(int64_t h) {
    product(k_t + h * K * F, F, F, q_t + h * K * F, F, F, K, nullptr, {w_t, F});
    for (int64_t i = 0; i < F; ++i) {
      Lanes largest = all(-INFINITY), total{};
      for (int64_t j = 0; j < F; ++j)
        if (may(i, j)) largest = larger(largest, w_t[j * F + i]);
      for (int64_t j = 0; j < F; ++j) {
        Lanes& weight = w_t[j * F + i];
        const Lanes x = (weight - largest) / divisor;
        weight = may(i, j) ? exp_of_negative(x) + 0.0f * x : Lanes{};  // adds NaN if x is NaN
        total += weight;
      }
      for (int64_t j = 0; j < F; ++j) w_t[j * F + i] /= total;
    }
  }

  // Converts s_t from the gradient of the weights to the gradient of the products of query and key.
  void unsoften() {
    for (int64_t i = 0; i < F; ++i) {
      Lanes mean{};
      for (int64_t j = 0; j < F; ++j) mean += w_t[j * F + i] * s_t[j * F + i];
      for (int64_t j = 0; j < F; ++j) s_t[j * F + i] = w_t[j * F + i] * (s_t[j * F + i] - mean) / divisor;
    }
  }
};

template <class Step>
bool has_memory(const Step& step) {
  try {
    step();
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace stec::STEC_WIDTH

using namespace stec::STEC_WIDTH;

// These functions return false if they are out of memory.
extern "C" __attribute__((visibility("default"))) bool stec_moments(
    const float* left, const float* right, const float* scale, int64_t rows, int64_t fields, int64_t width,
    double* first, double* second) {
  return has_memory([&] { moments(left, right, scale, {rows, fields, width}, first, second); });
}

extern "C" __attribute__((visibility("default"))) bool stec_logits(const float* left, const float* right,
                                                                   const float* a, int64_t rows, int64_t fields,
                                                                   int64_t width, float* logit) {
  return has_memory([&] { logits(left, right, a, {rows, fields, width}, logit); });
}

extern "C" __attribute__((visibility("default"))) bool stec_level_gradient(
    const float* left, const float* right, const float* scale, const float* a, const float* slope, const float* mean,
    int64_t rows, int64_t fields, int64_t width, float* by_left, float* by_right) {
  const auto compute = slope ? gradient<true> : gradient<false>;
  return has_memory(
      [&] { compute(left, right, scale, a, slope, mean, {rows, fields, width}, by_left, by_right); });
}

extern "C" __attribute__((visibility("default"))) bool stec_attend(
    const float* q, const float* k, const float* v, const uint8_t* allowed, float divisor, int64_t rows,
    int64_t fields, int64_t width, int64_t heads, float* out) {
  return has_memory([&] {
    Attention attention({rows, fields, width}, heads, divisor, allowed);
    for (int64_t row = 0; row < rows; row += LANES) {
      const int64_t at = row * fields * width;
      attention.forward(q + at, k + at, v + at, std::min<int64_t>(LANES, rows - row), out + at);
    }
  });
}

extern "C" __attribute__((visibility("default"))) bool stec_attention_gradient(
    const float* q, const float* k, const float* v, const uint8_t* allowed, float divisor, const float* by_out,
    int64_t rows, int64_t fields, int64_t width, int64_t heads, float* by_q, float* by_k, float* by_v) {
  return has_memory([&] {
    Attention attention({rows, fields, width}, heads, divisor, allowed);
    for (int64_t row = 0; row < rows; row += LANES) {
      const int64_t at = row * fields * width;
      attention.backward(q + at, k + at, v + at, by_out + at, std::min<int64_t>(LANES, rows - row), by_q + at,
                         by_k + at, by_v + at);
    }
  });
}
