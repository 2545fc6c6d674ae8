// The incidence table. The radius graph itself is not here yet: on CUDA it is refused.
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 32;

// A thread for each atom walks its crystal's edges in order, so the table is the CPU's.
__global__ void incidence_kernel(const int64_t *offsets, const int64_t *edge_offsets, const int32_t *src,
                                 const int32_t *dst, int64_t mirror, int64_t degree_capacity, int32_t pad,
                                 int32_t *in_edge, int32_t *slot, int32_t *degree, uint32_t *status) {
    const int64_t b = blockIdx.x;
    for (int64_t n = offsets[b] + threadIdx.x; n < offsets[b + 1]; n += blockDim.x) {
        int32_t k = 0;
        const int64_t row = n * degree_capacity;
        const auto enter = [&](int64_t edge) {
            const bool fits = k < degree_capacity;
            if (fits) in_edge[row + k] = static_cast<int32_t>(edge);
            if (slot != nullptr) slot[edge] = fits ? static_cast<int32_t>(row + k) : -1;
            ++k;
        };
        for (int64_t e = edge_offsets[b]; e < edge_offsets[b + 1]; ++e) {
            if (dst[e] == n) enter(e);
            if (mirror > 0 && src[e] == n) enter(e + mirror);
        }
        degree[n] = k;
        for (int64_t rest = k; rest < degree_capacity; ++rest) in_edge[row + rest] = pad;
        if (k > degree_capacity) atomicOr(status + b, static_cast<uint32_t>(DRUSE_STATUS_DEGREE_OVERFLOW));
    }
}

}  // namespace

int32_t radius_graph(const druse_exec *, int64_t, const int64_t *, const double *, const double *,
                     const druse_graph_options *, druse_edges *) {
    return DRUSE_ERROR_UNSUPPORTED;
}

int32_t incidence(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const int64_t *edge_offsets,
                  const int32_t *src, const int32_t *dst, int64_t mirror, int64_t degree_capacity, int32_t pad,
                  int32_t *in_edge, int32_t *slot, int32_t *degree, uint32_t *status) {
    if (n_crystals == 0) return DRUSE_OK;
    incidence_kernel<<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(
        offsets, edge_offsets, src, dst, mirror, degree_capacity, pad, in_edge, slot, degree, status);
    return launched();
}

}  // namespace cuda
}  // namespace druse
