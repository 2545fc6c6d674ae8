// How kernels are launched: queued on the caller's stream, never waited for.
#pragma once

#include <cuda_runtime.h>

#include "cuda.hpp"

namespace druse {
namespace cuda {

inline cudaStream_t stream_of(const druse_exec *exec) { return static_cast<cudaStream_t>(exec->stream); }

// A launch that failed says so here; a kernel that fails later says so at the caller's next synchronisation.
inline int32_t launched() { return cudaGetLastError() == cudaSuccess ? DRUSE_OK : DRUSE_ERROR_CUDA; }

inline unsigned blocks_for(int64_t count, int threads) { return static_cast<unsigned>((count + threads - 1) / threads); }

}  // namespace cuda
}  // namespace druse
