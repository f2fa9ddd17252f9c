// Chooses between eight and sixteen lanes.
#include <algorithm>
#include <atomic>

#include "stec.h"

extern "C" __attribute__((visibility("default"))) bool stec_processor_can() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

namespace {

int processor_lanes() {
#if STEC_HAS_SIXTEEN
  __builtin_cpu_init();  // because this runs before main()
  return __builtin_cpu_supports("avx512f") ? 16 : 8;
#else
  return 8;
#endif
}

std::atomic<int> max_lanes{processor_lanes()};

}  // namespace

// Returns the number of candidates in the largest group that score() computes at once: 8 or 16.
extern "C" __attribute__((visibility("default"))) int stec_max_lanes() { return max_lanes; }

// Makes score() use at most this many lanes from now on, in the whole process. For tests and benchmarks: the logits do
// not depend on the number.
extern "C" __attribute__((visibility("default"))) void stec_limit_lanes(int lanes) {
  max_lanes = std::min(lanes < 16 ? 8 : 16, processor_lanes());
}

namespace stec {

void score(const Model& model, const Input& input, float* logit) {
#if STEC_HAS_SIXTEEN
  if (max_lanes == 16 && input.candidates > 8) return sixteen::score(model, input, logit);
#endif
  eight::score(model, input, logit);
}

}  // namespace stec
