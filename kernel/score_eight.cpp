// The scorer with eight lanes: AVX2 on x86-64, NEON on aarch64.
#define STEC_LANES 8
#include "scorer.h"
