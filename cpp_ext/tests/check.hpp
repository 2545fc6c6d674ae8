// A test is a function; CHECK reports and counts, and goes on.
#pragma once

#include <cstdio>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "druse.h"

extern int failures;

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);     \
            ++failures;                                                             \
        }                                                                           \
    } while (0)

inline druse_exec on_cpu(int threads = 1, int isa = DRUSE_ISA_BEST) { return druse_exec{DRUSE_CPU, threads, isa, 0, nullptr}; }

inline std::vector<int> available_isas() {
    std::vector<int> isas;
    for (int isa = DRUSE_ISA_BASELINE; isa <= druse_best_isa(); ++isa) isas.push_back(isa);
    return isas;
}

// Heap arrays of exactly the stated size, so that the address sanitizer sees one element too far.
struct Batch {
    std::vector<int64_t> offsets{0};
    std::vector<double> frac, cells;

    int64_t crystals() const { return static_cast<int64_t>(offsets.size()) - 1; }
    int64_t atoms() const { return offsets.back(); }
    void add(const std::vector<double> &cell, const std::vector<double> &coordinates) {
        cells.insert(cells.end(), cell.begin(), cell.end());
        frac.insert(frac.end(), coordinates.begin(), coordinates.end());
        offsets.push_back(offsets.back() + static_cast<int64_t>(coordinates.size()) / 3);
    }
};

struct Edges {
    std::vector<int32_t> src, dst, image;
    std::vector<float> distance, unit;
    std::vector<int64_t> edge_offsets, edge_counts;
    std::vector<uint32_t> status;
    int32_t result = 0;

    int64_t count() const { return edge_offsets.back(); }
    bool operator==(const Edges &other) const {
        const auto same = [](const auto &a, const auto &b) {
            return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
        };
        return same(src, other.src) && same(dst, other.dst) && same(image, other.image) &&
               same(distance, other.distance) && same(unit, other.unit) && same(edge_offsets, other.edge_offsets) &&
               same(edge_counts, other.edge_counts) && same(status, other.status);
    }
};

inline Edges build(const Batch &batch, const druse_graph_options &options, int64_t capacity, const druse_exec &exec) {
    Edges e;
    const size_t places = static_cast<size_t>(capacity), crystals = static_cast<size_t>(batch.crystals());
    e.src.resize(places), e.dst.resize(places), e.image.resize(3 * places);
    e.distance.resize(places), e.unit.resize(3 * places);
    e.edge_offsets.resize(crystals + 1), e.edge_counts.resize(crystals), e.status.resize(crystals);
    druse_edges out{capacity,        e.src.data(),          e.dst.data(),         e.image.data(), e.distance.data(),
                    e.unit.data(),   e.edge_offsets.data(), e.edge_counts.data(), e.status.data(), nullptr, 0};
    e.result = druse_radius_graph(&exec, batch.crystals(), batch.offsets.data(), batch.frac.data(), batch.cells.data(),
                                  &options, &out);
    return e;
}

// Runs twice: the second time with exactly the edges that there are.
inline Edges build_exactly(const Batch &batch, const druse_graph_options &options, const druse_exec &exec = on_cpu()) {
    const Edges counted = build(batch, options, 0, exec);
    int64_t total = 0;
    for (const int64_t count : counted.edge_counts) total += count;
    return build(batch, options, total, exec);
}

inline Batch random_batch(unsigned seed, int crystals, int most_atoms) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> length(1.0, 9.0), skew(-0.9, 0.9), fraction(-1.5, 1.5);
    std::uniform_int_distribution<int> atoms(0, most_atoms);
    Batch batch;
    for (int b = 0; b < crystals; ++b) {
        const double a = length(random), c = length(random), d = length(random);
        std::vector<double> coordinates(static_cast<size_t>(3 * atoms(random)));
        for (double &x : coordinates) x = fraction(random);
        batch.add({a, 0.0, 0.0, a * skew(random), c, 0.0, d * skew(random), c * skew(random), b % 2 == 0 ? d : -d},
                  coordinates);
    }
    return batch;
}

void test_core();
void test_crystal_graph();
void test_graph();
void test_operations();
