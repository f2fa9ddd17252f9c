// A folded STEC (see export/graphs/pack.py) on the CPU. It computes eight candidates at a time, one in each lane of a
// vector. This avoids the time that onnxruntime's operators spend on short rows, small products and copies.
#pragma once

#include <cstdint>

namespace stec {

struct Sizes {
  int64_t width, heads, hidden, blocks;
  // Number of categorical and numeric fields of the context and of a candidate.
  int64_t context_categorical, context_numeric, candidate_categorical, candidate_numeric;
  // 1 if context fields attend to context fields only, otherwise 0.
  int64_t request_attention;

  int64_t context_fields() const { return context_categorical + context_numeric; }
  int64_t candidate_fields() const { return candidate_categorical + candidate_numeric; }
  int64_t fields() const { return context_fields() + candidate_fields(); }
  // Returns the number of floats in Model::weights. See weights.h for their layout.
  int64_t weights() const;
  bool are_sane() const;
};

struct Model {
  Sizes sizes;
  int64_t table_rows;
  const float* table;      // [table_rows][width]: the embeddings of all categorical fields, concatenated
  const int64_t* offsets;  // the first row of each categorical field in the table, context first
  const float* alpha;      // [numeric fields][width], context first
  const float* beta;       // [numeric fields][width] for missing numbers (NaN), or null if there are none
  const float* weights;
};

// R requests and N candidates. See docs/architecture.md for the shapes.
struct Input {
  int64_t requests, candidates;
  const int64_t *context_ids, *candidate_ids, *request_index;
  const float *context_values, *candidate_values;
};

// Returns null if every offset, id and index is in range, otherwise a message that says what is out of range.
const char* problem(const Model& model, const Input& input);

// Writes the logits, float [N]. Call this only if problem() returns null.
void score(const Model& model, const Input& input, float* logit);

}  // namespace stec
