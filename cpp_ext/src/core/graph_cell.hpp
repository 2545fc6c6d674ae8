// What the radius graph of one crystal knows before its atoms: the reduced cell, and how far to search.
#pragma once

#include "druse.h"
#include "images.hpp"

namespace druse {

// Squared distances up to r2, from images no longer than sqrt(farthest2) and within a box.
struct GraphLevel {
    double farthest2;
    ImageBox box;
    float r2;
    int32_t reserved;
};

// What is known of a crystal before its atoms are.
struct PreparedCrystal {
    ReducedCell reduced;  // exact mode
    GraphLevel level[2];  // the last one is the cutoff
    int32_t n_levels;
    float error;     // of a float32 distance
    float cell[9];   // upstream mode
    uint32_t status;
};

DRUSE_HD float cube_root(float x) {
    float y = float_of_bits(bits_of_float(x) / 3 + 709921077u);
    for (int round = 0; round < 3; ++round) y -= (y * y * y - x) / (3.0f * y * y);
    return y;
}

DRUSE_HD void prepare_crystal(const druse_graph_options &o, int64_t n, const double *cell, PreparedCrystal *p) {
    const bool exact = o.mode == DRUSE_MODE_EXACT;
    p->n_levels = 0;
    p->error = 0.0f;
    p->reduced.valid = false;
    for (int k = 0; k < 9; ++k) p->cell[k] = 0.0f;
    p->status = n == 0 ? static_cast<uint32_t>(DRUSE_STATUS_EMPTY) : 0u;
    if (n == 0) return;
    if (!all_within(cell, 9, kLargestCell)) {
        p->status = DRUSE_STATUS_NON_FINITE;
        return;
    }
    GraphLevel cutoff = {};
    if (!exact) {
        for (int k = 0; k < 9; ++k) p->cell[k] = static_cast<float>(cell[k]);
        const float radius = static_cast<float>(o.cutoff);
        cutoff.r2 = radius * radius;
        cutoff.farthest2 = __builtin_inf();
        cutoff.box.most[0] = cutoff.box.most[1] = cutoff.box.most[2] = 1;
        cutoff.box.size = 27;
        if (is_flat(cell))
            p->status = DRUSE_STATUS_SINGULAR;
        else if (image_bits(n, cutoff.box.size) < 0)
            p->status = DRUSE_STATUS_TOO_MANY_IMAGES;
        p->level[0] = cutoff;
        p->n_levels = 1;
        return;
    }
    p->reduced = reduce_cell(cell);
    const ReducedCell &r = p->reduced;
    if (!r.valid) {
        p->status = DRUSE_STATUS_SINGULAR;
        return;
    }
    const double farthest = farthest_image(r, o.cutoff);
    p->error = distance_error(r, farthest);
    const float reach = static_cast<float>(o.cutoff + kCutoffTolerance) + p->error;
    cutoff.r2 = reach * reach;
    cutoff.farthest2 = farthest * farthest;
    cutoff.box = image_box(r, o.cutoff + kCutoffTolerance);
    if (cutoff.box.size == 0) {
        p->status = DRUSE_STATUS_TOO_MANY_IMAGES;
        return;
    }
    // a sphere that holds 2.2 K atoms on average: enough for the K nearest and their shell in all but uneven crystals
    double normal[3];
    cross3(r.rows + 3, r.rows + 6, normal);
    const double volume = __builtin_fabs(dot3(r.rows, normal));
    const double wanted = 2.2 * static_cast<double>(o.max_neighbors) / static_cast<double>(n) * volume * 0.2387324146;
    const float near = wanted < 1e18 ? cube_root(static_cast<float>(wanted)) : 1e6f;
    const double error = static_cast<double>(p->error), within = static_cast<double>(near) + 2.0 * error + 1e-3;
    if (near > 0.1f && within < 0.95 * o.cutoff) {
        GraphLevel &level = p->level[0];
        level.r2 = near * near;
        level.farthest2 = (within + r.reach) * (within + r.reach);
        if (level.farthest2 > cutoff.farthest2) level.farthest2 = cutoff.farthest2;
        level.box = image_box(r, within);
        level.reserved = 0;
        p->n_levels = 1;
    }
    p->level[p->n_levels++] = cutoff;
}

}  // namespace druse
