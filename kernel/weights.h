// The layout of `weights`: all arrays are float32 and row-major.
//   for each block: projections [D][4 D] (query, key, value, residual), their bias [4 D], out [D][D],
//     if the model has an FFN (M > 0): inner [D][M], its bias [M], outer [M + D][D] (hidden units, then the skip), its
//     bias [D],
//     the eps of each norm [2], or [1] without an FFN, the level's interaction weights [D][F][F]
//   the standalone level: projections [D][2 D], bias [2 D], interaction weights [D][F][F]
//   the bias [1]
#pragma once

#include "stec.h"

namespace stec {

struct BlockWeights {
  const float *project, *project_bias, *out, *inner, *inner_bias, *outer, *outer_bias, *eps;
};

// Pointers to the parts of a model's weights. Sizes::weights() is their total number.
struct Weights {
  // Not inline, because files that are compiled for different processors use it (see lanes.h).
  explicit Weights(const Model& model);

  BlockWeights blocks[MAX_BLOCKS];
  const float* interaction[MAX_BLOCKS + 1];  // one per level
  const float *last_project, *last_bias;
  float bias;
};

}  // namespace stec
