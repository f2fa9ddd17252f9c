// A folded STEC (see export/graphs/pack.py) on the CPU. It computes eight or sixteen candidates at a time, one in each
// lane of a vector. This avoids the time that onnxruntime's operators spend on short rows, small products and copies.
#pragma once

#include <cstdint>

// Only g++ can compile one file for AVX-512 and the others without it (see lanes.h).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STEC_HAS_SIXTEEN 1
#else
#define STEC_HAS_SIXTEEN 0
#endif

namespace stec {

constexpr int64_t MAX_BLOCKS = 64;

struct Sizes {
  int64_t width, heads;
  int64_t hidden;  // 0: the blocks have no FFN, and no norm after it
  int64_t blocks;
  // Number of categorical and numeric fields of the context and of a candidate.
  int64_t context_categorical, context_numeric, candidate_categorical, candidate_numeric;
  // 1 if context fields attend to context fields only, otherwise 0.
  int64_t request_attention;

  int64_t context_fields() const { return context_categorical + context_numeric; }
  int64_t candidate_fields() const { return candidate_categorical + candidate_numeric; }
  int64_t fields() const { return context_fields() + candidate_fields(); }
  int64_t numeric_fields() const { return context_numeric + candidate_numeric; }
  // Returns the number of floats in Model::weights. See weights.h for their layout.
  int64_t weights() const;
  bool are_sane() const;
};

struct Model {
  Sizes sizes;
  int64_t table_rows;
  const float* table;      // [table_rows][width]: the embeddings of all categorical fields, concatenated
  const int64_t* offsets;  // the first row of each categorical field in the table, context first
  // Vectors of the numeric fields, [numeric fields][width] each, context first. A number has the vector
  // number * alpha + shift, and a missing number (NaN) has the vector `missing`.
  const float* alpha;
  const float* missing;  // null: no number is missing
  const float* shift;    // null: 0
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

// Returns the end of the group of candidates that begins at `start`. A group has at most `lanes` candidates.
int64_t group_end(const Sizes& sizes, const Input& input, int64_t start, int64_t lanes);

// Writes the logits, float [N]. Call this only if problem() returns null. The logits do not depend on the width.
void score(const Model& model, const Input& input, float* logit);

// score() in a given width.
namespace eight {
void score(const Model& model, const Input& input, float* logit);
}
#if STEC_HAS_SIXTEEN
namespace sixteen {
void score(const Model& model, const Input& input, float* logit);
}
#endif

}  // namespace stec

// Returns whether this processor can run the code with eight lanes.
extern "C" bool stec_processor_can();
