// The radius graph, a thread block for each crystal (core/crystal_graph.hpp), and the incidence table.
#include "../core/crystal_graph.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kBlocks = 5;  // on a multiprocessor at once: what registers and shared memory are sized for
constexpr int kImages = 512, kSources = 32, kCandidates = 224, kDistances = 96, kAtoms = 64, kSlotAtoms = 16, kSlot = 48;
constexpr unsigned kFull = 0xffffffffu;

// A thread block as a team, see core/crystal_graph.hpp.
struct BlockTeam {
    __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ int threads() const { return kThreads; }
    __device__ __forceinline__ int warp() const { return static_cast<int>(threadIdx.x >> 5); }
    __device__ __forceinline__ int warps() const { return kWarps; }
    __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x & 31u); }
    __device__ __forceinline__ int lanes() const { return 32; }
    __device__ __forceinline__ void sync() const { __syncthreads(); }
    __device__ __forceinline__ void sync_warp() const { __syncwarp(); }
    __device__ __forceinline__ void pause() const { __nanosleep(32); }
    __device__ __forceinline__ void join(uint32_t *word, uint32_t bits) const { atomicOr(word, bits); }
    __device__ __forceinline__ uint32_t ballot(bool value) const { return __ballot_sync(kFull, value); }
    __device__ __forceinline__ uint32_t sum(uint32_t value) const { return __reduce_add_sync(kFull, value); }
    __device__ __forceinline__ uint32_t least(uint32_t value) const { return __reduce_min_sync(kFull, value); }
    __device__ __forceinline__ int64_t pick(int64_t value, int from) const { return __shfl_sync(kFull, value, from); }
    __device__ __forceinline__ int64_t sum_wide(int64_t value) const {
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFull, value, step);
        return value;
    }
    __device__ __forceinline__ uint64_t least_wide(uint64_t value) const {
        const uint32_t high = static_cast<uint32_t>(value >> 32), least_high = least(high);
        const uint32_t low = high == least_high ? static_cast<uint32_t>(value) : kFull;
        return static_cast<uint64_t>(least_high) << 32 | least(low);
    }
    __device__ __forceinline__ int64_t sum_before(int64_t value) const {
        int64_t sum = value;
        for (int step = 1; step < 32; step *= 2) {
            const int64_t below = __shfl_up_sync(kFull, sum, step);
            if (lane() >= step) sum += below;
        }
        return sum - value;
    }
};

// The caller's working memory.
struct Workspace {
    unsigned long long *ticket;  // crystals begun
    uint64_t *ledger;            // [n_crystals]
    PreparedCrystal *prepared;   // [n_crystals]
    GraphAtom *atoms;            // [n_atoms]
    int32_t *slots;              // [n_atoms, kSlot]
    int64_t n_atoms;
};

constexpr int64_t kPerCrystal = sizeof(uint64_t) + sizeof(PreparedCrystal);
constexpr int64_t kPerAtom = sizeof(GraphAtom) + kSlot * sizeof(int32_t);
constexpr int64_t kHead = 16;
static_assert(sizeof(PreparedCrystal) % 8 == 0 && sizeof(GraphAtom) % 8 == 0, "arrays follow one another");

Workspace workspace_of(const druse_edges *edges, int64_t n_crystals) {
    char *at = static_cast<char *>(edges->workspace);
    Workspace w;
    w.n_atoms = (edges->workspace_bytes - kHead - n_crystals * kPerCrystal) / kPerAtom;
    w.ticket = reinterpret_cast<unsigned long long *>(at);
    at += kHead;
    w.ledger = reinterpret_cast<uint64_t *>(at);
    at += n_crystals * static_cast<int64_t>(sizeof(uint64_t));
    w.prepared = reinterpret_cast<PreparedCrystal *>(at);
    at += n_crystals * static_cast<int64_t>(sizeof(PreparedCrystal));
    w.atoms = reinterpret_cast<GraphAtom *>(at);
    at += w.n_atoms * static_cast<int64_t>(sizeof(GraphAtom));
    w.slots = reinterpret_cast<int32_t *>(at);
    return w;
}

// What follows from a crystal's cell, and an empty ledger.
__global__ void prepare_kernel(int64_t n_crystals, const int64_t *offsets, const double *cells, druse_graph_options options,
                               Workspace w) {
    const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (b >= n_crystals) return;
    if (b == 0) *w.ticket = 0;
    w.ledger[b] = 0;
    double cell[9];
    for (int k = 0; k < 9; ++k) cell[k] = cells[9 * b + k];
    prepare_crystal(options, offsets[b + 1] - offsets[b], cell, w.prepared + b);
}

template <bool kExact>
__global__ void __launch_bounds__(kThreads, kBlocks)
    graph_kernel(const int64_t *offsets, const double *frac, druse_graph_options options, Workspace w, druse_edges out) {
    __shared__ PreparedCrystal prepared;
    __shared__ GraphTotals totals;
    __shared__ GraphImage images[kImages];
    __shared__ GraphSource sources[kWarps * kSources];
    __shared__ float d2[kWarps * kCandidates];
    __shared__ int32_t keys[kWarps * kCandidates];
    __shared__ double distances[kWarps * kDistances];
    __shared__ GraphAtom atoms[kAtoms];
    __shared__ int32_t slots[kSlotAtoms * kSlot];
    __shared__ int64_t begun;

    // Blocks take crystals in the order in which they begin, so that none waits for one that has not.
    if (threadIdx.x == 0) begun = static_cast<int64_t>(atomicAdd(w.ticket, 1ull));
    __syncthreads();
    const int64_t b = begun, first = offsets[b];
    const int32_t n = static_cast<int32_t>(offsets[b + 1] - first);
    const uint64_t *from = reinterpret_cast<const uint64_t *>(w.prepared + b);
    for (int k = static_cast<int>(threadIdx.x); k < static_cast<int>(sizeof prepared / sizeof *from); k += kThreads)
        reinterpret_cast<uint64_t *>(&prepared)[k] = from[k];

    const GraphMemory memory = {&prepared, &totals,   images,     kImages, sources, kSources,   d2,    keys,
                                kCandidates, distances, kDistances, atoms,   kAtoms,  slots, kSlotAtoms, kSlot,
                                w.atoms + first, w.slots + first * kSlot};
    graph_of_crystal<BlockTeam, kExact>(BlockTeam(), memory, options, b, first, n, first + n <= w.n_atoms, frac + 3 * first,
                                        w.ledger, out);
}

// A warp for each atom walks its crystal's edges in order, 32 at a time, so the table is the CPU's.
__global__ void __launch_bounds__(kThreads)
    incidence_kernel(const int64_t *offsets, const int64_t *edge_offsets, const int32_t *src, const int32_t *dst,
                     int64_t mirror, int64_t degree_capacity, int32_t pad, int32_t *in_edge, int32_t *slot,
                     int32_t *degree, uint32_t *status) {
    const int64_t b = blockIdx.x, end_atom = offsets[b + 1], first = edge_offsets[b], end = edge_offsets[b + 1];
    const int lane = static_cast<int>(threadIdx.x & 31u);
    const unsigned below = (1u << lane) - 1u;
    for (int64_t n = offsets[b] + (threadIdx.x >> 5); n < end_atom; n += kWarps) {
        const int64_t row = n * degree_capacity;
        int32_t total = 0;
        const auto enter = [&](int64_t edge, int32_t k) {
            const bool fits = k < degree_capacity;
            if (fits) in_edge[row + k] = static_cast<int32_t>(edge);
            if (slot != nullptr) slot[edge] = fits ? static_cast<int32_t>(row + k) : -1;
        };
        for (int64_t start = first; start < end; start += 32) {
            const int64_t e = start + lane;
            const bool into = e < end && dst[e] == n, from = e < end && mirror > 0 && src[e] == n;
            const unsigned ends = __ballot_sync(kFull, into), starts = __ballot_sync(kFull, from);
            const int32_t k = total + __popc(ends & below) + __popc(starts & below);
            if (into) enter(e, k);
            if (from) enter(e + mirror, k + (into ? 1 : 0));
            total += __popc(ends) + __popc(starts);
        }
        for (int64_t k = total + lane; k < degree_capacity; k += 32) in_edge[row + k] = pad;
        if (lane == 0) {
            degree[n] = total;
            if (total > degree_capacity) atomicOr(status + b, static_cast<uint32_t>(DRUSE_STATUS_DEGREE_OVERFLOW));
        }
    }
}

}  // namespace

int64_t graph_workspace(int64_t n_crystals, int64_t n_atoms) {
    return kHead + n_crystals * kPerCrystal + n_atoms * kPerAtom;
}

int32_t radius_graph(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const double *frac,
                     const double *cells, const druse_graph_options *options, druse_edges *edges) {
    const cudaStream_t stream = stream_of(exec);
    if (n_crystals == 0)
        return cudaMemsetAsync(edges->edge_offsets, 0, sizeof *edges->edge_offsets, stream) == cudaSuccess
                   ? DRUSE_OK
                   : DRUSE_ERROR_CUDA;
    if (edges->workspace == nullptr || edges->workspace_bytes < graph_workspace(n_crystals, 0)) return DRUSE_ERROR_ARGUMENT;
    const Workspace w = workspace_of(edges, n_crystals);
    prepare_kernel<<<blocks_for(n_crystals, 32), 32, 0, stream>>>(n_crystals, offsets, cells, *options, w);
    if (const int32_t failure = launched()) return failure;
    const auto kernel = options->mode == DRUSE_MODE_EXACT ? graph_kernel<true> : graph_kernel<false>;
    kernel<<<static_cast<unsigned>(n_crystals), kThreads, 0, stream>>>(offsets, frac, *options, w, *edges);
    return launched();
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
