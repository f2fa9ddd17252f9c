// Memory for intermediates that outlives a call.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

#include "lanes.h"

namespace stec {

// Grows, and is kept: taking it anew for each call would cost as much as a candidate.
class Memory {
 public:
  ~Memory() { std::free(lanes); }

  // Not std::vector: as a template's argument Lanes loses its alignment. Nothing with Lanes in it is in one.
  Lanes* at_least(int64_t count) {
    if (count > size) {
      std::free(std::exchange(lanes, nullptr)), size = 0;
      lanes = static_cast<Lanes*>(std::aligned_alloc(alignof(Lanes), size_t(count) * sizeof(Lanes)));
      if (!lanes) throw std::bad_alloc();
      size = count;
    }
    return lanes;
  }

 private:
  Lanes* lanes = nullptr;
  int64_t size = 0;
};

}  // namespace stec
