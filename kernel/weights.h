// The layout of `weights`: all arrays are float32 and row-major.
//   for each block: projections [D][4 D] (query, key, value, residual), their bias [4 D], out [D][D],
//     inner [D][M], its bias [M], outer [M + D][D] (hidden units, then the skip), its bias [D],
//     the two norms' eps [2], the level's interaction weights [D][F][F]
//   the standalone level: projections [D][2 D], bias [2 D], interaction weights [D][F][F]
//   the bias [1]
#pragma once

#include <utility>
#include <vector>

#include "stec.h"

namespace stec {

struct BlockWeights {
  const float *project, *project_bias, *out, *inner, *inner_bias, *outer, *outer_bias, *eps;
};

// Pointers to the parts of a model's weights. Sizes::weights() is their total number.
struct Weights {
  explicit Weights(const Model& model) {
    const Sizes& s = model.sizes;
    const int64_t D = s.width, M = s.hidden, level = D * s.fields() * s.fields();
    const float* w = model.weights;
    const auto take = [&w](int64_t count) { return std::exchange(w, w + count); };
    for (int64_t l = 0; l < s.blocks; ++l) {
      BlockWeights& b = blocks.emplace_back();
      b.project = take(D * 4 * D);
      b.project_bias = take(4 * D);
      b.out = take(D * D);
      b.inner = take(D * M);
      b.inner_bias = take(M);
      b.outer = take((M + D) * D);
      b.outer_bias = take(D);
      b.eps = take(2);
      interaction.push_back(take(level));
    }
    last_project = take(D * 2 * D);
    last_bias = take(2 * D);
    interaction.push_back(take(level));
    bias = *take(1);
  }

  std::vector<BlockWeights> blocks;
  std::vector<const float*> interaction;  // one per level
  const float *last_project, *last_bias;
  float bias;
};

}  // namespace stec
