// The decoder's geometry.
#include "../core/basis.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kShared = 256;  // edges of an atom whose unit vectors a block keeps

__global__ void __launch_bounds__(kThreads)
    radial_basis_kernel(int64_t count, const float *distance, float cutoff, int32_t n_radial, float *out) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const int64_t e = count <= UINT32_MAX ? static_cast<uint32_t>(index) / static_cast<uint32_t>(n_radial) : index / n_radial;
    const float k = static_cast<float>(index - e * n_radial), intervals = static_cast<float>(n_radial - 1);
    const float d = distance[e] / cutoff, exponent = -0.5f * intervals * intervals;
    out[index] = envelope(d) * gaussian(d, k / intervals, exponent);
}

// A thread block for each atom, whose edges' unit vectors it keeps in shared memory; a thread for each pair of edges, so that
// a warp writes consecutive numbers. Factors of the recurrence are known to the compiler where kSpherical is not 0.
template <int kSpherical>
__global__ void __launch_bounds__(kThreads)
    legendre_kernel(int64_t degree_capacity, int32_t any_spherical, const int32_t *in_edge, const int32_t *degree,
                    int64_t mirror, const float *unit, float *out) {
    const int32_t n_spherical = kSpherical > 0 ? kSpherical : any_spherical;
    const int32_t width = static_cast<int32_t>(degree_capacity);
    const int64_t n = blockIdx.x;
    const int32_t d = degree[n] < width ? degree[n] : width;
    __shared__ float shared[3][kShared];
    in_edge += n * degree_capacity;
    out += n * degree_capacity * n_spherical * degree_capacity;
    const bool fits = d <= kShared;
    if (fits)
        for (int32_t k = static_cast<int32_t>(threadIdx.x); k < d; k += kThreads) {
            float v[3];
            unit_of(unit, mirror, in_edge[k], v);
            for (int c = 0; c < 3; ++c) shared[c][k] = v[c];
        }
    __syncthreads();
    const auto unit_at = [&](int32_t k, float *v) {
        if (fits)
            for (int c = 0; c < 3; ++c) v[c] = shared[c][k];
        else
            unit_of(unit, mirror, in_edge[k], v);
    };
    const int32_t step_i = kThreads / width, step_j = kThreads % width;
    int32_t i = static_cast<int32_t>(threadIdx.x) / width, j = static_cast<int32_t>(threadIdx.x) % width;
    while (i < width) {
        float *row = out + static_cast<int64_t>(i) * n_spherical * width + j;
        const bool inside = i < d && j < d;
        float cosine = 0.0f;
        if (inside) {
            float a[3], b[3];
            unit_at(i, a);
            unit_at(j, b);
            cosine = (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2];
        }
        float before = inside && i != j ? 1.0f : 0.0f, previous = before * cosine;
        row[0] = before;
        if (n_spherical > 1) row[width] = inside ? previous : 0.0f;
#pragma unroll
        for (int32_t l = 2; l < (kSpherical > 0 ? kSpherical : n_spherical); ++l) {
            const float next = legendre_next(l, cosine, previous, before);
            row[static_cast<int64_t>(l) * width] = inside ? next : 0.0f;
            before = previous;
            previous = next;
        }
        i += step_i;
        j += step_j;
        if (j >= width) j -= width, ++i;
    }
}

// A warp for each atom: 32 edges are read at once, and added in the order of the table by a thread for each component.
__global__ void __launch_bounds__(kThreads)
    force_sum_kernel(int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge, const int32_t *degree, int64_t mirror,
                     const float *unit, const float *force, float *out) {
    __shared__ float shared[kThreads / 32][32][3];
    const int lane = static_cast<int>(threadIdx.x & 31u);
    const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + (threadIdx.x >> 5);
    if (n >= n_atoms) return;
    float(*terms)[3] = shared[threadIdx.x >> 5];
    const int64_t d = degree[n] < degree_capacity ? degree[n] : degree_capacity;
    float sum = 0.0f;
    for (int64_t start = 0; start < d; start += 32) {
        const int count = static_cast<int>(d - start < 32 ? d - start : 32);
        __syncwarp();
        if (lane < count) {
            const int64_t e = in_edge[n * degree_capacity + start + lane];
            float v[3];
            unit_of(unit, mirror, e, v);
            for (int c = 0; c < 3; ++c) terms[lane][c] = force[e] * v[c];
        }
        __syncwarp();
        if (lane < 3)
            for (int k = 0; k < count; ++k) sum += terms[k][lane];
    }
    if (lane < 3) out[3 * n + lane] = sum;
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
    const auto kernel = n_spherical == 7 ? legendre_kernel<7> : legendre_kernel<0>;  // 7 is GemNet's
    kernel<<<static_cast<unsigned>(n_atoms), kThreads, 0, stream_of(exec)>>>(
        degree_capacity, n_spherical, in_edge, degree, mirror, unit, out);
    return launched();
}

int32_t force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                  const int32_t *degree, int64_t mirror, const float *unit, const float *force, float *out) {
    if (n_atoms == 0) return DRUSE_OK;
    force_sum_kernel<<<blocks_for(n_atoms, kThreads / 32), kThreads, 0, stream_of(exec)>>>(
        n_atoms, degree_capacity, in_edge, degree, mirror, unit, force, out);
    return launched();
}

}  // namespace cuda
}  // namespace druse
