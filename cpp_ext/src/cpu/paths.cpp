// Sums over paths of a batch, in groups of atoms that do not depend on the number of threads.
#include <atomic>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace druse {
namespace cpu {
namespace {

constexpr int64_t kGroup = 8;  // atoms

// function(begin, end, scratch) for groups of atoms; it returns false when memory ran out.
template <class Function>
int32_t by_atoms(const druse_exec *exec, const druse_paths *paths, const Function &function) {
    std::atomic<bool> out_of_memory{false};
    parallel_ranges(exec->n_threads, paths->n_atoms, kGroup, [&](int64_t begin, int64_t end) {
        static thread_local PathScratch scratch;
        if (!function(begin, end, &scratch)) out_of_memory.store(true);
        scratch.end();
    });
    return out_of_memory.load() ? DRUSE_ERROR_MEMORY : DRUSE_OK;
}

}  // namespace

int32_t path_sum(const druse_exec *exec, const PathSum &sum) {
    const Kernels &kernel = kernels(exec->isa);
    return by_atoms(exec, sum.paths, [&](int64_t begin, int64_t end, PathScratch *scratch) {
        return kernel.path_sum(sum, begin, end, scratch);
    });
}

int32_t path_sum_gradient(const druse_exec *exec, const PathSum &sum, float *of_weight) {
    const Kernels &kernel = kernels(exec->isa);
    const int64_t size = static_cast<int64_t>(sum.n_spherical) * sum.n_radial * sum.channels;
    const int64_t n_groups = (sum.paths->n_atoms + kGroup - 1) / kGroup;
    Buffer<float> parts;  // of each group, added in order: the same bytes on any number of threads
    if (!parts.reserve(n_groups * size)) return DRUSE_ERROR_MEMORY;
    memset(of_weight, 0, static_cast<size_t>(size) * sizeof *of_weight);
    if (n_groups == 0) return DRUSE_OK;
    memset(parts.data, 0, static_cast<size_t>(n_groups * size) * sizeof *parts.data);
    const int32_t result = by_atoms(exec, sum.paths, [&](int64_t begin, int64_t end, PathScratch *scratch) {
        return kernel.path_sum_gradient(sum, begin, end, parts.data + begin / kGroup * size, scratch);
    });
    for (int64_t group = 0; group < n_groups; ++group)
        for (int64_t k = 0; k < size; ++k) of_weight[k] += parts[group * size + k];
    return result;
}

int32_t triplet_sum(const druse_exec *exec, const TripletSum &sum) {
    const Kernels &kernel = kernels(exec->isa);
    return by_atoms(exec, sum.paths, [&](int64_t begin, int64_t end, PathScratch *scratch) {
        return kernel.triplet_sum(sum, begin, end, scratch);
    });
}

int32_t triplet_sum_gradient(const druse_exec *exec, const TripletSum &sum) {
    const Kernels &kernel = kernels(exec->isa);
    return by_atoms(exec, sum.paths, [&](int64_t begin, int64_t end, PathScratch *scratch) {
        return kernel.triplet_sum_gradient(sum, begin, end, scratch);
    });
}

int32_t gemnet(const druse_exec *exec, const druse_gemnet &net, const druse_gemnet_batch &batch, float *score,
               float *logits) {
    static thread_local GemNetScratch scratch;
    const bool done = kernels(exec->isa).gemnet(net, batch, &scratch, score, logits);
    scratch.end();
    return done ? DRUSE_OK : DRUSE_ERROR_MEMORY;
}

}  // namespace cpu
}  // namespace druse
