// The GPU's radius graph, run by threads of the CPU: the same bytes as the CPU's own, whatever the capacities.
#include "core/crystal_graph.hpp"

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "check.hpp"
#include "teams.hpp"

namespace {

using namespace druse;

const int32_t kAll = std::numeric_limits<int32_t>::max();

struct Capacities {
    int32_t images, sources, candidates, distances, atoms, slot_atoms, slot;
};

const Capacities kUsual = {512, 32, 224, 96, 64, 16, 48};
const Capacities kSmall = {40, 3, 24, 20, 5, 2, 9};
const Capacities kNone = {1, 1, 1, 1, 1, 1, 1};

// One block's memory, each array exactly as large as stated.
struct Memory {
    Memory(const Capacities &c, int warps, int64_t n)
        : images(size(c.images)), sources(size(c.sources * warps)), d2(size(c.candidates * warps)),
          keys(size(c.candidates * warps)), distances(size(c.distances * warps)), atoms(size(c.atoms)),
          slots(size(c.slot_atoms * c.slot)), far_atoms(size(n)), far_slots(size(n * c.slot)), capacities(c) {}

    GraphMemory view() {
        return GraphMemory{&prepared,           &totals,         images.data(),        capacities.images,
                           sources.data(),      capacities.sources, d2.data(),         keys.data(),
                           capacities.candidates, distances.data(), capacities.distances, atoms.data(),
                           capacities.atoms,    slots.data(),    capacities.slot_atoms, capacities.slot,
                           far_atoms.data(),    far_slots.data()};
    }
    static size_t size(int64_t count) { return static_cast<size_t>(count); }

    PreparedCrystal prepared;
    GraphTotals totals;
    std::vector<GraphImage> images;
    std::vector<GraphSource> sources;
    std::vector<float> d2;
    std::vector<int32_t> keys;
    std::vector<double> distances;
    std::vector<GraphAtom> atoms;
    std::vector<int32_t> slots;
    std::vector<GraphAtom> far_atoms;
    std::vector<int32_t> far_slots;
    Capacities capacities;
};

template <class Team>
void run(const Team &team, Memory *memory, const Batch &batch, const druse_graph_options &o, int64_t b, uint64_t *ledger,
         const druse_edges &out) {
    const int64_t first = batch.offsets[static_cast<size_t>(b)];
    const int32_t n = static_cast<int32_t>(batch.offsets[static_cast<size_t>(b) + 1] - first);
    const GraphMemory view = memory->view();
    if (team.thread() == 0) prepare_crystal(o, n, batch.cells.data() + 9 * b, &memory->prepared);
    team.sync();
    if (o.mode == DRUSE_MODE_EXACT)
        graph_of_crystal<Team, true>(team, view, o, b, first, n, true, batch.frac.data() + 3 * first, ledger, out);
    else
        graph_of_crystal<Team, false>(team, view, o, b, first, n, true, batch.frac.data() + 3 * first, ledger, out);
    team.sync();
}

int64_t atoms_of(const Batch &batch, int64_t b) {
    return batch.offsets[static_cast<size_t>(b) + 1] - batch.offsets[static_cast<size_t>(b)];
}

druse_edges sized(Edges *e, const Batch &batch, int64_t capacity) {
    const size_t places = static_cast<size_t>(capacity), crystals = static_cast<size_t>(batch.crystals());
    e->src.resize(places), e->dst.resize(places), e->image.resize(3 * places);
    e->distance.resize(places), e->unit.resize(3 * places);
    e->edge_offsets.resize(crystals + 1), e->edge_counts.resize(crystals), e->status.resize(crystals);
    return druse_edges{capacity,         e->src.data(),          e->dst.data(),         e->image.data(), e->distance.data(),
                       e->unit.data(),   e->edge_offsets.data(), e->edge_counts.data(), e->status.data(), nullptr, 0};
}

Edges by_one(const Batch &batch, const druse_graph_options &o, int64_t capacity, const Capacities &capacities) {
    Edges e;
    const druse_edges out = sized(&e, batch, capacity);
    std::vector<uint64_t> ledger(static_cast<size_t>(batch.crystals()), 0);
    for (int64_t b = 0; b < batch.crystals(); ++b) {
        Memory memory(capacities, 1, atoms_of(batch, b));
        run(TeamOfOne(), &memory, batch, o, b, ledger.data(), out);
    }
    return e;
}

// Two blocks at a time, which take crystals in order as a GPU's do.
Edges by_threads(const Batch &batch, const druse_graph_options &o, int64_t capacity, const Capacities &capacities, int warps,
                 int lanes) {
    Edges e;
    const druse_edges out = sized(&e, batch, capacity);
    std::vector<uint64_t> ledger(static_cast<size_t>(batch.crystals()), 0);
    std::atomic<int64_t> ticket{0};
    struct Shared {
        Block block;
        int64_t crystal = 0;
        std::unique_ptr<Memory> memory;
    };
    std::vector<std::unique_ptr<Shared>> blocks;
    std::vector<std::thread> threads;
    for (int k = 0; k < 2; ++k) {
        blocks.push_back(std::unique_ptr<Shared>(new Shared{Block(warps, lanes), 0, nullptr}));
        Shared *shared = blocks.back().get();
        for (int t = 0; t < warps * lanes; ++t)
            threads.emplace_back([&, shared, t] {
                const TeamOfThreads team(&shared->block, t);
                for (;;) {
                    if (t == 0) {
                        shared->crystal = ticket.fetch_add(1);
                        if (shared->crystal < batch.crystals())
                            shared->memory =
                                std::make_unique<Memory>(capacities, warps, atoms_of(batch, shared->crystal));
                    }
                    team.sync();
                    const int64_t b = shared->crystal;
                    if (b >= batch.crystals()) return;
                    run(team, shared->memory.get(), batch, o, b, ledger.data(), out);
                }
            });
    }
    for (std::thread &thread : threads) thread.join();
    return e;
}

int64_t total_of(const Batch &batch, const druse_graph_options &o) {
    int64_t total = 0;
    for (const int64_t count : build(batch, o, 0, on_cpu()).edge_counts) total += count;
    return total;
}

std::vector<druse_graph_options> all_options(std::vector<double> cutoffs, std::vector<int32_t> ks) {
    std::vector<druse_graph_options> found;
    for (const int mode : {DRUSE_MODE_EXACT, DRUSE_MODE_UPSTREAM})
        for (int symmetrise = 0; symmetrise < 3; ++symmetrise)
            for (const double cutoff : cutoffs)
                for (const int32_t k : ks)
                    for (const double tolerance : {1e-3, -1.0})
                        if (mode == DRUSE_MODE_EXACT || tolerance > 0.0)
                            found.push_back(druse_graph_options{cutoff, tolerance, k, mode, symmetrise, 0});
    return found;
}

void check_all(const Batch &batch, const std::vector<druse_graph_options> &options,
               const std::vector<const Capacities *> &capacities) {
    for (const druse_graph_options &o : options) {
        const int64_t total = total_of(batch, o);
        for (const int64_t places : {total, total * 2 / 3}) {
            const Edges expected = build(batch, o, places, on_cpu());
            for (const Capacities *c : capacities) {
                const bool same = by_one(batch, o, places, *c) == expected;
                CHECK(same);
                if (!same)
                    std::printf("mode %d symmetrise %d K %d cutoff %g tolerance %g images %d places %ld of %ld\n", o.mode,
                                o.symmetrise, o.max_neighbors, o.cutoff, o.shell_tolerance, c->images,
                                static_cast<long>(places), static_cast<long>(total));
            }
        }
    }
}

// Lattices full of ties, at places that round: shells at the cutoff, halves, sixths.
Batch symmetric_batch() {
    const std::vector<double> corners = {0, 0, 0, 0, 0.5, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0};
    Batch batch;
    batch.add({0, 1.8, 1.8, 1.8, 0, 1.8, 1.8, 1.8, 0}, {0, 0, 0});
    batch.add({3.6, 0, 0, 0, 3.6, 0, 0, 0, 3.6}, corners);
    batch.add({2.87, 0, 0, 0, 2.87, 0, 0, 0, 2.87}, {0, 0, 0, 0.5, 0.5, 0.5});
    batch.add({3.2, 0, 0, -1.6, 2.7712812921102037, 0, 0, 0, 5.2}, {1.0 / 3, 2.0 / 3, 0.25, 2.0 / 3, 1.0 / 3, 0.75});
    batch.add({3, 0, 0, 0, 3, 0, 0, 0, 3}, {-0.5, 0.5, 1.5});
    batch.add({3, 0, 0, 3, 3, 0, 300, -21, 3}, {0.1, 0.2, 0.3, 7.6, -0.3, 0.8});
    batch.add({12, 0, 0, 0, 0.9, 0, 0, 0, 9}, {0, 0, 0, 1.0 / 6, 0.5, 5.0 / 6, 0.5, 0.5, 0.5});
    batch.add({30, 0, 0, 0, 30, 0, 0, 0, 30}, {0.5, 0.5, 0.5, 0.52, 0.5, 0.5, 0.5, 0.55, 0.5, 0, 0, 0});  // uneven
    return batch;
}

Batch troubled_batch() {
    const double nan = std::nan("");
    const std::vector<double> cube = {4, 0, 0, 0, 4, 0, 0, 0, 4}, pair = {0, 0, 0, 0.5, 0.5, 0.5};
    Batch batch;
    batch.add(cube, pair);
    batch.add(cube, {0, 0, nan});
    batch.add({4, 0, 0, 0, INFINITY, 0, 0, 0, 4}, pair);
    batch.add({4, 0, 0, 0, nan, 0, 0, 0, 4}, {});
    batch.add({4, 0, 0, 8, 0, 0, 0, 0, 4}, pair);
    batch.add({4, 0, 0, 8, 0, 0, 0, 0, 4}, {nan, 0, 0});
    batch.add({0, 0, 0, 0, 0, 0, 0, 0, 0}, pair);
    batch.add(cube, {0.1, 0.1, 0.1, 0.1, 0.1, 0.1});
    batch.add({90, 0, 0, 0, 90, 0, 0, 0, 90}, pair);
    batch.add({0.02, 0, 0, 0, 0.02, 0, 0, 0, 0.02}, {0, 0, 0});
    batch.add({0.011, 0, 0, 0, 0.011, 0, 0, 0, 0.011}, {0, 0, 0});
    batch.add(cube, {1e9, 0, 0});
    batch.add(cube, {1.0, -0.0, 1e4 + 0.5, -1e4, 3.5, -1e-20});
    batch.add({-4, 0, 0, 0, 4, 0, 0, 0, 4}, pair);
    batch.add({1, 0, 0, 0, 1, 0, 9e5, 0, 1}, {9e7, 9e7, 9e7, 0, 0, 0});
    batch.add(cube, {});
    return batch;
}

void one_thread_gives_the_same_bytes() {
    check_all(random_batch(31, 24, 12), all_options({4.0, 9.0}, {1, 12, 20, kAll}), {&kUsual, &kSmall});
    check_all(symmetric_batch(), all_options({3.6, 8.0}, {12, 20, kAll}), {&kUsual, &kSmall, &kNone});
    check_all(troubled_batch(), all_options({6.0}, {20}), {&kUsual});
    check_all(random_batch(32, 6, 5), all_options({5.0}, {2, 20, kAll}), {&kNone});
    check_all(random_batch(33, 2, 90), all_options({5.0}, {20, kAll}), {&kUsual});
}

// Under the thread sanitizer, this finds what no barrier orders.
void many_threads_give_the_same_bytes() {
    Batch batch = random_batch(34, 3, 7);
    batch.add({0, 1.8, 1.8, 1.8, 0, 1.8, 1.8, 1.8, 0}, {0, 0, 0});
    batch.add({30, 0, 0, 0, 30, 0, 0, 0, 30}, {0.5, 0.5, 0.5, 0.52, 0.5, 0.5, 0.5, 0.55, 0.5});
    for (const druse_graph_options &o : all_options({4.0}, {8})) {
        const int64_t total = total_of(batch, o);
        CHECK(by_threads(batch, o, total, kUsual, 2, 2) == build(batch, o, total, on_cpu()));
        CHECK(by_threads(batch, o, total / 2, kSmall, 1, 3) == build(batch, o, total / 2, on_cpu()));
    }
}

}  // namespace

void test_crystal_graph() {
    one_thread_gives_the_same_bytes();
    many_threads_give_the_same_bytes();
}
