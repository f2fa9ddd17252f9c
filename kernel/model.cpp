// The sizes of a model, the parts of its weights, and the validation of its inputs.
#include <utility>

#include "stec.h"
#include "weights.h"

namespace stec {

int64_t Sizes::weights() const {
  const int64_t level = width * fields() * fields(), m = hidden;
  const int64_t ffn = m > 0 ? width * m + m + (m + width) * width + width + 1 : 0;
  const int64_t block = width * 4 * width + 4 * width + width * width + ffn + 1;
  return blocks * (block + level) + width * 2 * width + 2 * width + level + 1;
}

Weights::Weights(const Model& model) {
  const Sizes& s = model.sizes;
  const int64_t D = s.width, M = s.hidden, level = D * s.fields() * s.fields();
  const float* w = model.weights;
  const auto take = [&w](int64_t count) { return std::exchange(w, w + count); };
  for (int64_t l = 0; l < s.blocks; ++l) {
    BlockWeights& b = blocks[l];
    b.project = take(D * 4 * D);
    b.project_bias = take(4 * D);
    b.out = take(D * D);
    if (M > 0) {
      b.inner = take(D * M);
      b.inner_bias = take(M);
      b.outer = take((M + D) * D);
      b.outer_bias = take(D);
    }
    b.eps = take(M > 0 ? 2 : 1);
    interaction[l] = take(level);
  }
  last_project = take(D * 2 * D);
  last_bias = take(2 * D);
  interaction[s.blocks] = take(level);
  bias = *take(1);
}

// Within these bounds, no product of sizes overflows an int64.
bool Sizes::are_sane() const {
  const auto in = [](int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; };
  return in(width, 1, 4096) && in(heads, 1, width) && width % heads == 0 && in(hidden, 0, 65536) &&
         in(blocks, 1, MAX_BLOCKS) && in(context_categorical, 0, 4096) && in(context_numeric, 0, 4096) &&
         in(candidate_categorical, 0, 4096) && in(candidate_numeric, 0, 4096) && context_fields() > 0 &&
         candidate_fields() > 0 && in(request_attention, 0, 1);
}

const char* problem(const Model& model, const Input& in) {
  const Sizes& s = model.sizes;
  for (int64_t field = 0; field < s.context_categorical + s.candidate_categorical; ++field)
    if (model.offsets[field] < 0 || model.offsets[field] > model.table_rows) return "an offset is out of range";
  const auto outside = [&](const int64_t* ids, int64_t rows, int64_t fields, const int64_t* offsets) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t field = 0; field < fields; ++field) {
        const int64_t id = ids[row * fields + field];
        if (id < 0 || id >= model.table_rows - offsets[field]) return true;
      }
    return false;
  };
  if (outside(in.context_ids, in.requests, s.context_categorical, model.offsets)) return "a context id is out of range";
  if (outside(in.candidate_ids, in.candidates, s.candidate_categorical, model.offsets + s.context_categorical))
    return "a candidate id is out of range";
  for (int64_t row = 0; row < in.candidates; ++row)
    if (in.request_index[row] < 0 || in.request_index[row] >= in.requests) return "a request index is out of range";
  return nullptr;
}

}  // namespace stec
