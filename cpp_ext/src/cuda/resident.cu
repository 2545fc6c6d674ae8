// What keeps a sampler's state on the device.
#include "../core/resident.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__global__ void combine_kernel(int64_t count, float a, const float *x, float b, const float *y, float c, float *out) {
    const int64_t i = thread_index();
    if (i < count) out[i] = y == nullptr ? scaled(a, x[i], c) : combined(a, x[i], b, y[i], c);
}

__global__ void advance_kernel(int64_t count, const int32_t *by, uint32_t *counters) {
    const int64_t k = thread_index();
    if (k < count) counters[k] += static_cast<uint32_t>(by[k]);
}

// One thread for whatever has this index: a half edge, a place of the table, an atom, a crystal.
__global__ void pad_kernel(const int64_t *offsets, const int64_t *edge_offsets, druse_padded_graph graph) {
    const int64_t i = thread_index();
    const int64_t n_atoms = offsets[graph.n_crystals];
    if (i < graph.n_edges) pad_edge(graph, edge_offsets[graph.n_crystals], i);
    if (i < graph.n_atoms * graph.degree_capacity) pad_place(graph, n_atoms, i);
    if (i < graph.n_atoms) pad_degree(graph, n_atoms, i);
    if (i < graph.n_crystals) graph.met[i] |= graph.status[i] & kStopped;
}

}  // namespace

int32_t combine(const druse_exec *exec, int64_t count, float a, const float *x, float b, const float *y, float c,
                float *out) {
    if (count == 0) return DRUSE_OK;
    combine_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream_of(exec)>>>(count, a, x, b, y, c, out);
    return launched();
}

int32_t advance(const druse_exec *exec, int64_t count, const int32_t *by, uint32_t *counters) {
    if (count == 0) return DRUSE_OK;
    advance_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream_of(exec)>>>(count, by, counters);
    return launched();
}

int32_t pad_graph(const druse_exec *exec, const int64_t *offsets, const int64_t *edge_offsets,
                  const druse_padded_graph *graph) {
    int64_t most = graph->n_atoms * graph->degree_capacity;
    if (graph->n_edges > most) most = graph->n_edges;
    if (graph->n_crystals > most) most = graph->n_crystals;
    pad_kernel<<<blocks_for(most, kThreads), kThreads, 0, stream_of(exec)>>>(offsets, edge_offsets, *graph);
    return launched();
}

}  // namespace cuda
}  // namespace druse
