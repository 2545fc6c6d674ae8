// What keeps a sampler's state in fixed places.
#include "../core/resident.hpp"
#include "cpu.hpp"
#include "pool.hpp"

namespace druse {
namespace cpu {

int32_t combine(const druse_exec *exec, int64_t count, float a, const float *x, float b, const float *y, float c,
                float *out) {
    parallel_ranges(exec->n_threads, count, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            out[i] = y == nullptr ? scaled(a, x[i], c) : combined(a, x[i], b, y[i], c);
    });
    return DRUSE_OK;
}

int32_t advance(const druse_exec *, int64_t count, const int32_t *by, uint32_t *counters) {
    for (int64_t k = 0; k < count; ++k) counters[k] += static_cast<uint32_t>(by[k]);
    return DRUSE_OK;
}

int32_t pad_graph(const druse_exec *exec, const int64_t *offsets, const int64_t *edge_offsets,
                  const druse_padded_graph *graph) {
    const int64_t n_atoms = offsets[graph->n_crystals], n_edges = edge_offsets[graph->n_crystals];
    parallel_ranges(exec->n_threads, graph->n_edges, 1 << 13, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) pad_edge(*graph, n_edges, e);
    });
    parallel_ranges(exec->n_threads, graph->n_atoms, 256, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            pad_degree(*graph, n_atoms, n);
            for (int64_t k = 0; k < graph->degree_capacity; ++k)
                pad_place(*graph, n_atoms, n * graph->degree_capacity + k);
        }
    });
    for (int64_t b = 0; b < graph->n_crystals; ++b) graph->met[b] |= graph->status[b] & kStopped;
    return DRUSE_OK;
}

}  // namespace cpu
}  // namespace druse
