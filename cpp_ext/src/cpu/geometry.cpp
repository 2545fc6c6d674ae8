// The decoder's geometry of a batch.
#include <atomic>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace druse {
namespace cpu {

int32_t radial_basis(const druse_exec *exec, int64_t n_edges, const float *distance, double cutoff, int32_t n_radial,
                     float *out) {
    const Kernels &kernel = kernels(exec->isa);
    parallel_ranges(exec->n_threads, n_edges, 256, [&](int64_t begin, int64_t end) {
        kernel.radial_basis(end - begin, distance + begin, static_cast<float>(cutoff), n_radial, out + begin * n_radial);
    });
    return DRUSE_OK;
}

int32_t legendre(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical,
                 const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit, float *out) {
    const Kernels &kernel = kernels(exec->isa);
    std::atomic<bool> out_of_memory{false};
    const int64_t block = degree_capacity * n_spherical * degree_capacity;
    parallel_ranges(exec->n_threads, n_atoms, 16, [&](int64_t begin, int64_t end) {
        static thread_local Buffer<float> vectors;
        if (!vectors.reserve(3 * degree_capacity)) {
            out_of_memory.store(true);
            return;
        }
        kernel.legendre(end - begin, degree_capacity, n_spherical, in_edge + begin * degree_capacity, degree + begin,
                        mirror, unit, vectors.data, out + begin * block);
    });
    return out_of_memory.load() ? DRUSE_ERROR_MEMORY : DRUSE_OK;
}

int32_t force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                  const int32_t *degree, int64_t mirror, const float *unit, const float *force, float *out) {
    const Kernels &kernel = kernels(exec->isa);
    parallel_ranges(exec->n_threads, n_atoms, 256, [&](int64_t begin, int64_t end) {
        kernel.force_sum(end - begin, degree_capacity, in_edge + begin * degree_capacity, degree + begin, mirror, unit,
                         force, out + 3 * begin);
    });
    return DRUSE_OK;
}

}  // namespace cpu
}  // namespace druse
