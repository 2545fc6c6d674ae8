// Half edges of one crystal from its directed ones, and the crystal's graph as a whole.
#pragma once

#include "graph_kernel.hpp"

namespace druse {
namespace DRUSE_ISA {

static inline bool is_half_edge(const EdgeArrays &edges, int64_t e) {
    return druse::is_half_edge(edges.src.data[e], edges.dst.data[e], edges.image.data + 3 * e);
}

// Does the source of edge e list the mirror of e? Lists are sorted by source.
static inline bool mirror_listed(const GraphScratch *s, int64_t e) {
    const int32_t *src = s->edges.src.data, *image = s->edges.image.data;
    const int32_t wanted = s->edges.dst.data[e];
    const int32_t a = -image[3 * e], b = -image[3 * e + 1], c = -image[3 * e + 2];
    int64_t low = s->first_edge.data[src[e]];
    const int64_t end = s->first_edge.data[src[e] + 1];
    while (low < end && src[low] < wanted) ++low;
    for (; low < end && src[low] == wanted; ++low)
        if (image[3 * low] == a && image[3 * low + 1] == b && image[3 * low + 2] == c) return true;
    return false;
}

// Copies edge `from` of the directed edges, or its mirror, to place `to` of the half edges.
static inline void copy_edge(GraphScratch *s, int64_t from, int64_t to, bool mirror) {
    const EdgeArrays &in = s->edges;
    EdgeArrays &out = s->half_edges;
    out.src[to] = (mirror ? in.dst : in.src).data[from];
    out.dst[to] = (mirror ? in.src : in.dst).data[from];
    out.distance[to] = in.distance.data[from];
    for (int k = 0; k < 3; ++k) {
        const int32_t image = in.image.data[3 * from + k];
        const float unit = in.unit.data[3 * from + k];
        out.image[3 * to + k] = mirror ? -image : image;
        out.unit[3 * to + k] = mirror ? -unit : unit;
    }
}

static inline bool halve(GraphScratch *s, bool unite, int64_t *total) {
    const int64_t directed = *total;
    if (!s->half_edges.reserve(directed)) return false;
    int64_t count = 0;
    for (int64_t e = 0; e < directed; ++e)
        if (is_half_edge(s->edges, e)) copy_edge(s, e, count++, false);
    if (unite)
        for (int64_t e = 0; e < directed; ++e)
            if (!is_half_edge(s->edges, e) && !mirror_listed(s, e)) copy_edge(s, e, count++, true);
    *total = count;
    return true;
}

static bool graph(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                  const druse_graph_options *options, CrystalGraph *out) {
    out->count = 0;
    out->status = 0;
    if (n == 0) {
        out->status = DRUSE_STATUS_EMPTY;
        return true;
    }
    if (!all_within(frac, 3 * n, kLargestFraction) || !all_within(cell, 9, kLargestCell)) {
        out->status = DRUSE_STATUS_NON_FINITE;
        return true;
    }
    if (!s->first_edge.reserve(n + 1)) return false;
    const bool exact = options->mode == DRUSE_MODE_EXACT;
    if (!(exact ? exact_edges : upstream_edges)(s, n, frac, cell, options, &out->count, &out->status)) return false;
    out->edges = &s->edges;
    if (options->symmetrise != DRUSE_SYMMETRISE_NONE && out->count > 0) {
        if (!halve(s, options->symmetrise == DRUSE_SYMMETRISE_UNION, &out->count)) return false;
        out->edges = &s->half_edges;
    }
    return true;
}

}  // namespace DRUSE_ISA
}  // namespace druse
