// Memory for intermediate results that is reused by the next call.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

#include "lanes.h"

namespace stec::STEC_WIDTH {

// The memory only grows. Allocating it in each call would cost as much time as scoring one candidate.
class Memory {
 public:
  ~Memory() { std::free(lanes); }

  // Not a std::vector: Lanes loses its alignment as a template argument. For the same reason, no std::vector holds
  // anything that contains Lanes.
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

}  // namespace stec::STEC_WIDTH
