// The scorer with sixteen lanes, for processors with AVX-512. Elsewhere, this file is empty.
#include "stec.h"

#if STEC_HAS_SIXTEEN
#define STEC_LANES 16
#include "scorer.h"
#endif
