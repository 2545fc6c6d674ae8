// The radius graph of a batch: crystals in parallel, edges packed in batch order.
#include <atomic>
#include <new>
#include <thread>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace druse {
namespace cpu {
namespace {

GraphScratch *&scratch_of_thread() {
    struct Owner {
        GraphScratch *scratch = nullptr;
        ~Owner() { delete scratch; }
    };
    static thread_local Owner owner;
    return owner.scratch;
}

template <class T>
void copy(T *out, const Buffer<T> &from, int64_t count) {
    memcpy(out, from.data, static_cast<size_t>(count) * sizeof(T));
}

void write_edges(const CrystalGraph &graph, int64_t first_atom, int64_t at, druse_edges *out) {
    if (graph.count == 0) return;
    const int32_t base = static_cast<int32_t>(first_atom);
    const int32_t *src = graph.edges->src.data, *dst = graph.edges->dst.data;
    for (int64_t e = 0; e < graph.count; ++e) {
        out->src[at + e] = base + src[e];
        out->dst[at + e] = base + dst[e];
    }
    copy(out->image + 3 * at, graph.edges->image, 3 * graph.count);
    copy(out->distance + at, graph.edges->distance, graph.count);
    copy(out->unit + 3 * at, graph.edges->unit, 3 * graph.count);
}

}  // namespace

// Threads take crystals in batch order. Each builds its crystal in scratch memory, waits until the crystal before has said
// where it ends, says the same for its own, and writes: one pass, packed, and the same bytes on any number of threads.
int32_t radius_graph(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const double *frac,
                     const double *cells, const druse_graph_options *options, druse_edges *out) {
    const Kernels &kernel = kernels(exec->isa);
    std::atomic<int64_t> turn{0};
    int64_t used = 0;  // touched only by the crystal whose turn it is
    out->edge_offsets[0] = 0;
    parallel(exec->n_threads, n_crystals, [&](int64_t b) {
        CrystalGraph graph;
        GraphScratch *&scratch = scratch_of_thread();
        if (scratch == nullptr) scratch = new (std::nothrow) GraphScratch;
        if (scratch == nullptr || !kernel.graph(scratch, offsets[b + 1] - offsets[b], frac + 3 * offsets[b],
                                                cells + 9 * b, options, &graph)) {
            graph = CrystalGraph();
            graph.status = DRUSE_STATUS_OUT_OF_MEMORY;
        }
        for (int spins = 0; turn.load(std::memory_order_acquire) != b; ++spins)
            if (spins > 200) std::this_thread::yield();
        const int64_t at = used;
        const bool fits = graph.count <= out->edge_capacity - used;
        if (fits) used += graph.count;
        out->edge_offsets[b + 1] = used;
        turn.store(b + 1, std::memory_order_release);

        out->edge_counts[b] = graph.count;
        out->status[b] = graph.status | (fits ? 0u : static_cast<uint32_t>(DRUSE_STATUS_EDGE_OVERFLOW));
        if (fits) write_edges(graph, offsets[b], at, out);
        if (scratch != nullptr && scratch->bytes() > kScratchKept) {
            delete scratch;
            scratch = nullptr;
        }
    });
    return DRUSE_OK;
}

int32_t incidence(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const int64_t *edge_offsets,
                  const int32_t *src, const int32_t *dst, int64_t mirror, int64_t degree_capacity, int32_t pad,
                  int32_t *in_edge, int32_t *slot, int32_t *degree, uint32_t *status) {
    parallel(exec->n_threads, n_crystals, [&](int64_t b) {
        bool overflow = false;
        const auto enter = [&](int32_t atom, int64_t edge) {
            const int32_t k = degree[atom]++;
            const bool fits = k < degree_capacity;
            const int64_t place = atom * degree_capacity + k;
            if (fits) in_edge[place] = static_cast<int32_t>(edge);
            if (slot != nullptr) slot[edge] = fits ? static_cast<int32_t>(place) : -1;
            overflow |= !fits;
        };
        for (int64_t n = offsets[b]; n < offsets[b + 1]; ++n) {
            degree[n] = 0;
            for (int64_t k = 0; k < degree_capacity; ++k) in_edge[n * degree_capacity + k] = pad;
        }
        for (int64_t e = edge_offsets[b]; e < edge_offsets[b + 1]; ++e) {
            enter(dst[e], e);
            if (mirror > 0) enter(src[e], e + mirror);
        }
        if (overflow) status[b] |= DRUSE_STATUS_DEGREE_OVERFLOW;
    });
    return DRUSE_OK;
}

}  // namespace cpu
}  // namespace druse
