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

// A request with many candidates gets its own groups, so that its context is computed only once.
int64_t group_end(const Sizes& sizes, const Input& in, int64_t start, int64_t lanes) {
  // With request attention, a context takes so long that a request gets a group of sixteen even if it fills only half.
  const int64_t many = sizes.request_attention ? 8 : lanes;
  const int64_t* index = in.request_index;
  int64_t end = start + 1;
  for (; end < in.candidates && end < start + lanes; ++end) {
    if (index[end] == index[end - 1]) continue;
    // Most rows of a long request are in groups before `start`. Only a remainder is left.
    const bool ends_long_request = start >= many && index[start - many + 1] == index[start];
    const bool begins_long_request = end + many <= in.candidates && index[end + many - 1] == index[end];
    if (ends_long_request || begins_long_request) break;
  }
  return end;
}

#if STEC_HAS_SIXTEEN
namespace {

// Returns the approximate time of a call. The unit is the time of a group in the same width. With full attention, the
// part of the context that is computed only once takes little time. With request attention, it takes as long as two
// groups.
int64_t cost(const Sizes& sizes, const Input& in, int64_t lanes) {
  int64_t total = 0, known = -1;
  for (int64_t start = 0, end; start < in.candidates; start = end) {
    end = group_end(sizes, in, start, lanes);
    const int64_t first = in.request_index[start], last = in.request_index[end - 1];
    total += 1;
    if (sizes.request_attention && (first != known || last != known)) total += 2;
    known = last;
  }
  return total;
}

}  // namespace
#endif

void score(const Model& model, const Input& input, float* logit) {
#if STEC_HAS_SIXTEEN
  // A group of sixteen takes about 4 / 3 as long as a group of eight.
  if (max_lanes == 16 && input.candidates > 8 && 4 * cost(model.sizes, input, 16) < 3 * cost(model.sizes, input, 8))
    return sixteen::score(model, input, logit);
#endif
  eight::score(model, input, logit);
}

}  // namespace stec
