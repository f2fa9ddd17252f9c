// Scores a group of candidates at a time, one in each lane of a vector. Only score_eight.cpp and score_sixteen.cpp
// include this file. Both perform the same operations in the same order for each candidate, so the width of the vectors
// does not change a bit of its logit.
//
// Legend: D width, F fields (the first U belong to the context), H heads, K = D / H, M hidden units.
// Each element of an array of Lanes holds the numbers of LANES candidates. In [a][b], the last index is contiguous.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

// Above lanes.h, so that their inline functions are compiled without AVX-512.
#include "stec.h"
#include "weights.h"

#include "lanes.h"
#include "memory.h"

namespace stec::STEC_WIDTH {
namespace {

constexpr int64_t CHUNK = 6;  // Number of columns per step, so that intermediate results stay in the L1 cache.

// The part of a level that depends only on the context. All candidates of a request share it.
struct Shared {
  Lanes* logit;                    // [1]
  Lanes *by_query, *by_key;        // [D][F - U]: factors for the keys and queries of a candidate
  Lanes *largest, *total, *value;  // [H][U], [H][U], [D][U]: the softmax over the keys of the context
};

struct Level {
  Lanes *query, *key, *value, *residual;  // [D][F], except value, which is [F][D]
  Shared shared;
};

thread_local Memory memory;

// Scores groups of up to LANES candidates. Results that candidates of a request share are computed only once.
class Scorer {
 public:
  explicit Scorer(const Model& model)
      : m(model), s(model.sizes), w(model), D(s.width), F(s.fields()), U(s.context_fields()) {
    place_intermediates(nullptr);
    place_intermediates(memory.at_least(taken));
  }

  void run(const Input& in, float* logit) {
    int64_t known[LANES];
    bool first = true;
    for (int64_t start = 0, end; start < in.candidates; start = end) {
      end = group_end(s, in, start, LANES);
      int64_t rows[LANES], requests[LANES];
      for (int lane = 0; lane < LANES; ++lane) {  // Lanes without a candidate repeat the first one.
        rows[lane] = start + lane < end ? start + lane : start;
        requests[lane] = in.request_index[rows[lane]];
      }
      if (first || !std::equal(requests, requests + LANES, known)) {
        gather(in.context_ids, in.context_values, requests, 0, s.context_categorical, s.context_numeric, 0, 0);
        lanes_are_alike = std::equal(requests + 1, requests + LANES, requests);
        share_context();
        std::copy(requests, requests + LANES, known), first = false;
      }
      gather(in.candidate_ids, in.candidate_values, rows, U, s.candidate_categorical, s.candidate_numeric,
             s.context_categorical, s.context_numeric);
      lanes_are_alike = end - start == 1;
      const Lanes answer = score_group();
      for (int64_t row = start; row < end; ++row) logit[row] = answer[row - start];
    }
  }

 private:
  // Assigns memory to the intermediate results. If `start` is null, only counts how much memory is needed.
  void place_intermediates(Lanes* start) {
    taken = 0;
    const auto take = [&](int64_t count) {
      const int64_t place = std::exchange(taken, taken + count);
      return start ? start + place : nullptr;
    };
    for (int64_t l = 0; l <= s.blocks; ++l) {
      Level& level = levels[l];
      level.query = take(D * F), level.key = take(D * F), level.value = take(D * F), level.residual = take(D * F);
      level.shared.by_query = take(D * (F - U)), level.shared.by_key = take(D * (F - U));
      level.shared.largest = take(s.heads * U), level.shared.total = take(s.heads * U);
      level.shared.value = take(D * U), level.shared.logit = take(1);
    }
    input = take(D * F), x = take(D * F), attended = take(D * F);
    chunk = take(std::max(F, s.hidden + D) * CHUNK), line = take(F);
    const int64_t packed = D * packed_columns(F);
    packed_in = take(packed), packed_attended = take(packed), packed_out = take(packed);
    packed_largest = take(packed), packed_total = take(packed);
  }

  // Writes the embeddings of these rows to input [D][F], from field `first` on: rows of the table for categorical
  // fields, then the vectors of numbers.
  void gather(const int64_t* ids, const float* values, const int64_t (&rows)[LANES], int64_t first,
              int64_t categorical, int64_t numeric, int64_t first_offset, int64_t first_alpha) {
    for (int64_t field = 0; field < categorical; ++field) {
      const float* from[LANES];
      for (int lane = 0; lane < LANES; ++lane)
        from[lane] = m.table + (ids[rows[lane] * categorical + field] + m.offsets[first_offset + field]) * D;
      write(from, first + field);
    }
    for (int64_t number = 0; number < numeric; ++number) {
      float value[LANES];
      for (int lane = 0; lane < LANES; ++lane) value[lane] = values[rows[lane] * numeric + number];
      write_numbers(value, first_alpha + number, first + categorical + number);
    }
  }

  void write(const float* const (&from)[LANES], int64_t field) {
    for (int64_t d = 0; d < D; ++d)
      for (int lane = 0; lane < LANES; ++lane) input[d * F + field][lane] = from[lane][d];
  }

  void write_numbers(const float (&value)[LANES], int64_t number, int64_t field) {
    const int64_t start = number * D;
    for (int64_t d = 0; d < D; ++d)
      for (int lane = 0; lane < LANES; ++lane) {
        const float v = value[lane], alpha = m.alpha[start + d];
        // An explicit fma, because g++ would fuse the operations in one width only.
        if (m.missing && std::isnan(v)) input[d * F + field][lane] = m.missing[start + d];
        else input[d * F + field][lane] = m.shift ? __builtin_fmaf(v, alpha, m.shift[start + d]) : v * alpha;
      }
  }

  // Computes everything that depends only on the requests: the context of the first level and its attention. With
  // request attention, this is the context of every level.
  void share_context() {
    const Lanes* in = input;
    for (int64_t l = 0; l < s.blocks; ++l) {
      project(l, in, 0, U);
      share_level(l);
      attend(l, 0, U, 0, U, Softmax::Keep);
      if (!s.request_attention) return;
      normalize_attended(l);
      finish_block(l, 0, U);
      in = x;
    }
    project_last(in, 0, U);
    share_level(s.blocks);
  }

  Lanes score_group() {
    Lanes logit = all(w.bias);
    const Lanes* in = input;
    for (int64_t l = 0; l < s.blocks; ++l) {
      const bool is_shared = l == 0 || s.request_attention;
      project(l, in, is_shared ? U : 0, F);
      logit += is_shared ? shared_level_logit(l) : level_logit(l);
      if (is_shared && !s.request_attention) attend(l, 0, U, U, F, Softmax::GoOn);
      attend(l, is_shared ? U : 0, F, 0, F, Softmax::Whole);
      finish_block(l, s.request_attention ? U : 0, F);
      in = x;
    }
    project_last(in, s.request_attention ? U : 0, F);
    return logit + (s.request_attention ? shared_level_logit(s.blocks) : level_logit(s.blocks));
  }

  void project(int64_t l, const Lanes* in, int64_t begin, int64_t end) {
    const BlockWeights& b = w.blocks[l];
    Level& level = levels[l];
    const Matrix out[] = {{level.query + begin, F}, {level.key + begin, F}, {level.value + begin * D, 1, D},
                          {level.residual + begin, F}};
    project_each(b.project, b.project_bias, out, 4, in + begin, end - begin);
  }

  void project_last(const Lanes* in, int64_t begin, int64_t end) {
    Level& level = levels[s.blocks];
    const Matrix out[] = {{level.query + begin, F}, {level.key + begin, F}};
    project_each(w.last_project, w.last_bias, out, 2, in + begin, end - begin);
  }

  // Computes `count` projections with D outputs each, whose weights are stored side by side.
  void project_each(const float* weights, const float* biases, const Matrix* out, int64_t count, const Lanes* in,
                    int64_t columns) {
    const int64_t packed = packed_columns(columns);
    if (lanes_are_alike) pack({const_cast<Lanes*>(in), F}, D, columns, {packed_in, packed});
    for (int64_t p = 0; p < count; ++p) {
      const float *own = weights + p * D, *bias = biases + p * D;
      if (lanes_are_alike) {
        product(own, count * D, D, packed_in, packed, packed, D, bias, {packed_out, packed});
        unpack({packed_out, packed}, D, columns, out[p]);
      } else {
        product(own, count * D, D, in, F, columns, D, bias, out[p]);
      }
    }
  }

  // If all lanes hold the same row, a column contains each number LANES times. This happens for the fields of a single
  // candidate, or for the context of a single request. An operation that treats all columns alike can then process
  // LANES columns that are packed into one.
  static int64_t packed_columns(int64_t columns) { return (columns + LANES - 1) / LANES; }

  // [rows][columns] -> [rows][packed columns]
  static void pack(Matrix from, int64_t rows, int64_t columns, Matrix to) {
    const int64_t packed = packed_columns(columns);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < packed * LANES; ++c)
        (*to.at(row, c / LANES))[c % LANES] = (*from.at(row, std::min(c, columns - 1)))[0];
  }

  static void unpack(Matrix from, int64_t rows, int64_t columns, Matrix to) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < columns; ++c) *to.at(row, c) = all((*from.at(row, c / LANES))[c % LANES]);
  }

  // Returns the sum over c, i, j of query[c][i] * interaction[c][i][j] * key[c][j].
  Lanes level_logit(int64_t l) {
    const Level& level = levels[l];
    Lanes logit{};
    for (int64_t c = 0; c < D; ++c) logit += meet(l, c, F, level.key + c * F, F);
    return logit;
  }

  // Sets line[j] = sum over the first `queries` fields i of query[c][i] * interaction[c][i][j]. Returns the sum of
  // line[j] * key[j] over the first `keys` fields j.
  Lanes meet(int64_t l, int64_t c, int64_t queries, const Lanes* key, int64_t keys) {
    const float* a = w.interaction[l] + c * F * F;
    const Lanes* query = levels[l].query + c * F;
    Lanes logit{};
    int64_t done = 0;
    const auto strip = [&]<int O>(int64_t start) {
      Lanes sum[O][1];
      sums<O, 1>(a + start, F, query, 1, queries, sum);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        const int64_t j = start + o;
        line[j] = sum[o][0];
        if (done <= j && j < keys) logit += sum[o][0] * key[j];
      }
      done = start + O;
    };
    while (done + 8 <= F) strip.template operator()<8>(done);
    // Eight sums in parallel take less time than the last few alone, so the last strip may repeat earlier sums.
    if (done < F && F >= 8) strip.template operator()<8>(F - 8);
    while (done + 4 <= F) strip.template operator()<4>(done);
    while (done < F) strip.template operator()<1>(done);
    return logit;
  }

  void share_level(int64_t l) {
    Level& level = levels[l];
    const int64_t own = F - U;
    *level.shared.logit = Lanes{};
    for (int64_t c = 0; c < D; ++c) {
      const Lanes* key = level.key + c * F;
      *level.shared.logit += meet(l, c, U, key, U);
      copy(line + U, own, level.shared.by_query + c * own);
      // by_key[i] = sum over the context fields j of interaction[c][i][j] * key[j], in two independent chains
      for (int64_t i = 0; i < own; ++i) {
        const float* a = w.interaction[l] + (c * F + U + i) * F;
        Lanes even{}, odd{};
        for (int64_t j = 0; j + 1 < U; j += 2) even += a[j] * key[j], odd += a[j + 1] * key[j + 1];
        if (U % 2) even += a[U - 1] * key[U - 1];
        level.shared.by_key[c * own + i] = even + odd;
      }
    }
  }

  // Returns the same as level_logit, but uses the shared part of the context.
  Lanes shared_level_logit(int64_t l) {
    const Level& level = levels[l];
    const int64_t own = F - U;
    Lanes logit = *level.shared.logit;
    for (int64_t c = 0; c < D; ++c) {
      const Lanes *query = level.query + c * F + U, *key = level.key + c * F + U;
      for (int64_t i = 0; i < own; ++i) {
        const float* a = w.interaction[l] + (c * F + U + i) * F + U;
        Lanes sum = level.shared.by_key[c * own + i];
        for (int64_t j = 0; j < own; ++j) sum += a[j] * key[j];
        logit += query[i] * sum + key[i] * level.shared.by_query[c * own + i];
      }
    }
    return logit;
  }

  // Whole: softmax over all keys. Keep: softmax over the keys of the context, whose state is kept. GoOn: continues from
  // that state with the keys of a candidate.
  enum class Softmax { Whole, Keep, GoOn };

  // Queries, and the results of attention for them. The last index is the query.
  struct Queries {
    int64_t count;
    Matrix query, attended;         // [D][count]
    Matrix largest, total, value;   // [H], [H] and [D][count]: the state that Keep writes and GoOn reads
  };

  // Fields begin..end attend to fields from..to. Writes attended [D][F], or the state of the softmax.
  void attend(int64_t l, int64_t begin, int64_t end, int64_t from, int64_t to, Softmax softmax) {
    const Level& level = levels[l];
    const Shared& shared = level.shared;
    const int64_t columns = end - begin;
    const Queries queries{columns, {level.query + begin, F}, {attended + begin, F},
                          {shared.largest, U}, {shared.total, U}, {shared.value, U}};
    if (!lanes_are_alike) return attend_columns(l, queries, from, to, softmax);
    const int64_t packed = packed_columns(columns);
    const Queries in_lanes{packed, {packed_in, packed}, {packed_attended, packed},
                           {packed_largest, packed}, {packed_total, packed}, {packed_out, packed}};
    pack(queries.query, D, columns, in_lanes.query);
    if (softmax == Softmax::GoOn) {
      pack(queries.largest, s.heads, columns, in_lanes.largest);
      pack(queries.total, s.heads, columns, in_lanes.total);
      pack(queries.value, D, columns, in_lanes.value);
    }
    attend_columns(l, in_lanes, from, to, softmax);
    if (softmax != Softmax::Keep) return unpack(in_lanes.attended, D, columns, queries.attended);
    unpack(in_lanes.largest, s.heads, columns, queries.largest);
    unpack(in_lanes.total, s.heads, columns, queries.total);
    unpack(in_lanes.value, D, columns, queries.value);
  }

  // The queries attend to fields from..to, one head at a time.
  void attend_columns(int64_t l, const Queries& q, int64_t from, int64_t to, Softmax softmax) {
    const Level& level = levels[l];
    const int64_t K = D / s.heads, keys = to - from;
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < q.count; i += CHUNK) {
        const int64_t columns = std::min(CHUNK, q.count - i);
        const Matrix query = q.query.from(h * K, i), weights{chunk, CHUNK};
        product(level.key + h * K * F + from, F, keys, query.data, query.row_step, columns, K, nullptr, weights);
        Lanes factor[CHUNK];
        exponentiate(keys, columns, softmax, q.largest.at(h, i), q.total.at(h, i), factor);
        const Matrix out = (softmax == Softmax::Keep ? q.value : q.attended).from(h * K, i);
        product(level.value + from * D + h * K, D, K, chunk, CHUNK, columns, keys, nullptr, out);
        if (softmax == Softmax::Keep) continue;
        for (int64_t k = 0; k < K; ++k)
          for (int64_t c = 0; c < columns; ++c) {
            Lanes sum = *out.at(k, c);
            if (softmax == Softmax::GoOn) sum += scale[c] * *q.value.at(h * K + k, i + c);
            *out.at(k, c) = sum * factor[c];
          }
      }
  }

  // Replaces the scores in `chunk` by e^(score - largest). Sets `factor` to 1 / total, including the kept state, and
  // `scale` to the factor for the kept values. Keep writes shared_largest and shared_total, and GoOn reads them.
  void exponentiate(int64_t keys, int64_t columns, Softmax softmax, Lanes* shared_largest, Lanes* shared_total,
                    Lanes (&factor)[CHUNK]) {
    const bool goes_on = softmax == Softmax::GoOn, keeps = softmax == Softmax::Keep;
    Lanes largest[CHUNK], total[CHUNK];
    for (int64_t c = 0; c < columns; ++c) largest[c] = goes_on ? shared_largest[c] : chunk[c];
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t c = 0; c < columns; ++c) largest[c] = larger(largest[c], chunk[j * CHUNK + c]);
    for (int64_t c = 0; c < columns; ++c) {
      total[c] = Lanes{};
      if (!goes_on) continue;
      scale[c] = exp_of_negative(shared_largest[c] - largest[c]);
      total[c] = shared_total[c] * scale[c];
    }
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t c = 0; c < columns; ++c) {
        Lanes& weight = chunk[j * CHUNK + c];
        weight = exp_of_negative(weight - largest[c]);
        total[c] += weight;
      }
    for (int64_t c = 0; c < columns; ++c) {
      factor[c] = 1.0f / total[c];
      if (keeps) shared_largest[c] = largest[c], shared_total[c] = total[c];
    }
  }

  // Completes a softmax that Softmax::Keep started, when no keys of a candidate follow.
  void normalize_attended(int64_t l) {
    const Shared& shared = levels[l].shared;
    const int64_t K = D / s.heads;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0; i < U; ++i)
        attended[d * F + i] = shared.value[d * U + i] / shared.total[d / K * U + i];
  }

  // Computes the rest of a block, from the attention to its output x [D][F].
  void finish_block(int64_t l, int64_t begin, int64_t end) {
    const BlockWeights& b = w.blocks[l];
    Lanes* residual = levels[l].residual + begin;
    const int64_t columns = end - begin, packed = packed_columns(columns);
    if (!lanes_are_alike) return finish_columns(b, residual, attended + begin, F, columns, x + begin);
    pack({residual, F}, D, columns, {packed_in, packed});
    pack({attended + begin, F}, D, columns, {packed_attended, packed});
    finish_columns(b, packed_in, packed_attended, packed, packed, packed_out);
    unpack({packed_out, packed}, D, columns, {x + begin, F});
  }

  void finish_columns(const BlockWeights& b, Lanes* residual, const Lanes* heads, int64_t step, int64_t count,
                      Lanes* out) {
    for (int64_t i = 0; i < count; i += CHUNK) {
      const int64_t columns = std::min(CHUNK, count - i);
      // Without an FFN, the first norm completes the block's output.
      const Matrix first = s.hidden ? Matrix{chunk + s.hidden * CHUNK, CHUNK} : Matrix{out + i, step};
      product<Then::AddTo>(b.out, D, D, heads + i, step, columns, D, nullptr, first, {residual + i, step});
      normalize(first, columns, b.eps[0]);
      if (!s.hidden) continue;
      product<Then::AddBiasAndRelu>(b.inner, s.hidden, s.hidden, first.data, CHUNK, columns, D, b.inner_bias,
                                    {chunk, CHUNK});
      product(b.outer, D, D, chunk, CHUNK, columns, s.hidden + D, b.outer_bias, {out + i, step});
      normalize({out + i, step}, columns, b.eps[1]);
    }
  }

  // Scales up to CHUNK columns, whose mean is 0, to variance 1.
  void normalize(Matrix x, int64_t columns, float eps) {
    Lanes sum[CHUNK] = {};
    for (int64_t d = 0; d < D; ++d)
      for (int64_t c = 0; c < columns; ++c) sum[c] += *x.at(d, c) * *x.at(d, c);
    for (int64_t c = 0; c < columns; ++c) sum[c] = inverse_root(sum[c] * (1.0f / float(D)) + eps);
    for (int64_t d = 0; d < D; ++d)
      for (int64_t c = 0; c < columns; ++c) *x.at(d, c) *= sum[c];
  }

  const Model& m;
  const Sizes& s;
  const Weights w;
  const int64_t D, F, U;
  Level levels[MAX_BLOCKS + 1];
  Lanes *input, *x, *attended, *chunk, *line, *packed_in, *packed_attended, *packed_out,
      *packed_largest, *packed_total;
  bool lanes_are_alike;
  Lanes scale[CHUNK];
  int64_t taken;
};

}  // namespace

void score(const Model& model, const Input& input, float* logit) { Scorer(model).run(input, logit); }

}  // namespace stec::STEC_WIDTH
