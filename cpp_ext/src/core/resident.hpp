// What keeps a sampler's state where it is: a graph made up to fixed lengths, sums of vectors.
#pragma once

#include "druse.h"
#include "host_device.hpp"

namespace druse {

// The status bits that stop a crystal; the others only inform.
constexpr uint32_t kStopped = 0xffu;

// Half edge e, if it is not there, and the places of both its directions.
DRUSE_HD void pad_edge(const druse_padded_graph &graph, int64_t n_real, int64_t e) {
    const int32_t nobody = static_cast<int32_t>(graph.n_atoms - 1);
    const int32_t nowhere = static_cast<int32_t>(nobody * graph.degree_capacity);
    const bool real = e < n_real;
    if (!real) {
        graph.src[e] = graph.dst[e] = nobody;
        graph.distance[e] = static_cast<float>(graph.cutoff);
    }
    if (!real || graph.slot[e] < 0) graph.slot[e] = nowhere;
    if (!real || graph.slot[graph.n_edges + e] < 0) graph.slot[graph.n_edges + e] = nowhere;
}

// Place k of the incidence table, rows after one another. The degree of an atom that is not there is written by pad_degree.
DRUSE_HD void pad_place(const druse_padded_graph &graph, int64_t n_real, int64_t place) {
    const int64_t n = place / graph.degree_capacity, k = place % graph.degree_capacity;
    const bool real = n < n_real;
    if (!real) graph.in_edge[place] = static_cast<int32_t>(2 * graph.n_edges - 1);
    graph.valid[place] = real && k < graph.degree[n] ? 1.0f : 0.0f;
}

DRUSE_HD void pad_degree(const druse_padded_graph &graph, int64_t n_real, int64_t n) {
    if (n >= n_real) graph.degree[n] = 0;
}

DRUSE_HD float combined(float a, float x, float b, float y, float c) { return (a * x + b * y) / c; }
DRUSE_HD float scaled(float a, float x, float c) { return a * x / c; }

}  // namespace druse
