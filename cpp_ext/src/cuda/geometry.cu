// The decoder's geometry.
#include "../core/basis.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 128;

__global__ void radial_basis_kernel(int64_t count, const float *distance, float cutoff, int32_t n_radial, float *out) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const int64_t e = index / n_radial;
    const float k = static_cast<float>(index % n_radial), intervals = static_cast<float>(n_radial - 1);
    const float d = distance[e] / cutoff, exponent = -0.5f * intervals * intervals;
    out[index] = envelope(d) * gaussian(d, k / intervals, exponent);
}

// A thread block for each atom, a thread for each pair of its edges.
__global__ void legendre_kernel(int64_t degree_capacity, int32_t n_spherical, const int32_t *in_edge,
                                const int32_t *degree, int64_t mirror, const float *unit, float *out) {
    const int64_t n = blockIdx.x, d = degree[n] < degree_capacity ? degree[n] : degree_capacity;
    in_edge += n * degree_capacity;
    out += n * degree_capacity * n_spherical * degree_capacity;
    for (int64_t pair = threadIdx.x; pair < degree_capacity * degree_capacity; pair += blockDim.x) {
        const int64_t i = pair / degree_capacity, j = pair % degree_capacity;
        float *row = out + i * n_spherical * degree_capacity + j;
        if (i >= d || j >= d) {
            for (int32_t l = 0; l < n_spherical; ++l) row[l * degree_capacity] = 0.0f;
            continue;
        }
        float a[3], b[3];
        unit_of(unit, mirror, in_edge[i], a);
        unit_of(unit, mirror, in_edge[j], b);
        const float cosine = (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2];
        float before = i != j ? 1.0f : 0.0f, previous = before * cosine;
        row[0] = before;
        if (n_spherical > 1) row[degree_capacity] = previous;
        for (int32_t l = 2; l < n_spherical; ++l) {
            const float next = legendre_next(l, cosine, previous, before);
            row[l * degree_capacity] = next;
            before = previous;
            previous = next;
        }
    }
}

__global__ void force_sum_kernel(int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                                 const int32_t *degree, int64_t mirror, const float *unit, const float *force,
                                 float *out) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= n_atoms) return;
    const int64_t d = degree[n] < degree_capacity ? degree[n] : degree_capacity;
    float sum[3] = {0.0f, 0.0f, 0.0f};
    for (int64_t k = 0; k < d; ++k) {
        const int64_t e = in_edge[n * degree_capacity + k];
        float v[3];
        unit_of(unit, mirror, e, v);
        for (int c = 0; c < 3; ++c) sum[c] += force[e] * v[c];
    }
    for (int c = 0; c < 3; ++c) out[3 * n + c] = sum[c];
}

}  // namespace

int32_t radial_basis(const druse_exec *exec, int64_t n_edges, const float *distance, double cutoff, int32_t n_radial,
                     float *out) {
    const int64_t count = n_edges * n_radial;
    if (count == 0) return DRUSE_OK;
    radial_basis_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream_of(exec)>>>(
        count, distance, static_cast<float>(cutoff), n_radial, out);
    return launched();
}

int32_t legendre(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical,
                 const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit, float *out) {
    if (n_atoms == 0 || degree_capacity == 0) return DRUSE_OK;
    legendre_kernel<<<static_cast<unsigned>(n_atoms), kThreads, 0, stream_of(exec)>>>(
        degree_capacity, n_spherical, in_edge, degree, mirror, unit, out);
    return launched();
}

int32_t force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                  const int32_t *degree, int64_t mirror, const float *unit, const float *force, float *out) {
    if (n_atoms == 0) return DRUSE_OK;
    force_sum_kernel<<<blocks_for(n_atoms, kThreads), kThreads, 0, stream_of(exec)>>>(
        n_atoms, degree_capacity, in_edge, degree, mirror, unit, force, out);
    return launched();
}

}  // namespace cuda
}  // namespace druse
