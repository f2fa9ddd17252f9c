// A folded STEC (see export/graphs/pack.py) on the CPU: what onnxruntime's operators spend on short rows, small
// products and copies is avoided by computing eight candidates at a time, one in each lane of a vector.
#pragma once

#include <cstdint>

namespace stec {

struct Sizes {
  int64_t width, heads, hidden, blocks;
  // Of the context's and of the candidate's fields: how many are categorical, how many numeric.
  int64_t context_categorical, context_numeric, candidate_categorical, candidate_numeric;
  // 1: context fields attend to context fields only.
  int64_t request_attention;

  int64_t context_fields() const { return context_categorical + context_numeric; }
  int64_t candidate_fields() const { return candidate_categorical + candidate_numeric; }
  int64_t fields() const { return context_fields() + candidate_fields(); }
  // Of `weights`, in floats. See the layout in weights.h.
  int64_t weights() const;
  bool are_sane() const;
};

struct Model {
  Sizes sizes;
  int64_t table_rows;
  const float* table;      // table_rows x width: all categorical fields' embeddings behind each other
  const int64_t* offsets;  // of each categorical field in the table, context first
  const float* alpha;      // numeric fields x width, context first
  const float* weights;
};

// R requests and N candidates; see docs/architecture.md for the shapes.
struct Input {
  int64_t requests, candidates;
  const int64_t *context_ids, *candidate_ids, *request_index;
  const float *context_values, *candidate_values;
};

// Null when every offset, id and index is in its range, else what is not.
const char* problem(const Model& model, const Input& input);

// logit: float [N]. The input has no problem.
void score(const Model& model, const Input& input, float* logit);

}  // namespace stec
