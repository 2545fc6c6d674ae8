// Marks what host and device share. Everything in core/ is plain arithmetic on scalars: no library calls but sqrt, no
// contraction (the build forbids it on both sides), so host and device give the same bits.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define DRUSE_HD static __host__ __device__ __forceinline__
#else
#define DRUSE_HD static inline __attribute__((always_inline))
#endif
