// Stands in for src/cuda where there is no CUDA compiler.
#include "cuda/cuda.hpp"

namespace druse {
namespace cuda {

bool built() { return false; }
int devices() { return 0; }
int64_t graph_workspace(int64_t, int64_t) { return 0; }

int32_t radius_graph(const druse_exec *, int64_t, const int64_t *, const double *, const double *,
                     const druse_graph_options *, druse_edges *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t incidence(const druse_exec *, int64_t, const int64_t *, const int64_t *, const int32_t *, const int32_t *,
                  int64_t, int64_t, int32_t, int32_t *, int32_t *, int32_t *, uint32_t *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t normal(const druse_exec *, const druse_noise_key *, int64_t, const int64_t *, int32_t, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t uniform(const druse_exec *, const druse_noise_key *, int64_t, const int64_t *, int32_t, double *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t gumbel(const druse_exec *, const druse_noise_key *, int64_t, const int64_t *, int32_t, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t langevin(const druse_exec *, const druse_noise_key *, int64_t, const int64_t *, const double *, double, double,
                 const double *, const float *, const float *, int32_t, const float *, const uint8_t *, double *, int32_t *,
                 uint32_t *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t ddpm(const druse_exec *, const druse_noise_key *, int64_t, int32_t, double, double, double, const float *,
             const float *, float *, uint32_t *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t add_gumbel(const druse_exec *, const druse_noise_key *, int64_t, const int64_t *, int32_t, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t combine(const druse_exec *, int64_t, float, const float *, float, const float *, float, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t advance(const druse_exec *, int64_t, const int32_t *, uint32_t *) { return DRUSE_ERROR_UNSUPPORTED; }
int32_t pad_graph(const druse_exec *, const int64_t *, const int64_t *, const druse_padded_graph *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t radial_basis(const druse_exec *, int64_t, const float *, double, int32_t, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t legendre(const druse_exec *, int64_t, int64_t, int32_t, const int32_t *, const int32_t *, int64_t,
                 const float *, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}
int32_t force_sum(const druse_exec *, int64_t, int64_t, const int32_t *, const int32_t *, int64_t, const float *,
                  const float *, float *) {
    return DRUSE_ERROR_UNSUPPORTED;
}

}  // namespace cuda
}  // namespace druse
