// Lattice geometry in float64: Minkowski reduction, lattice plane spacings, and which periodic images can matter.
#pragma once

#include "updates.hpp"

namespace druse {

DRUSE_HD double dot3(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

DRUSE_HD void cross3(const double *a, const double *b, double *out) {
    out[0] = a[1] * b[2] - a[2] * b[1];
    out[1] = a[2] * b[0] - a[0] * b[2];
    out[2] = a[0] * b[1] - a[1] * b[0];
}

// Whether a cell has no volume, up to rounding. NaN and infinity count as flat.
DRUSE_HD bool is_flat(const double *cell) {
    double normal[3];
    cross3(cell + 3, cell + 6, normal);
    const double volume = __builtin_fabs(dot3(cell, normal));
    const double box = __builtin_sqrt(dot3(cell, cell) * dot3(cell + 3, cell + 3) * dot3(cell + 6, cell + 6));
    return !(volume > 1e-10 * box) || !(box < 1e45);
}

// A reduced cell: rows = transform @ given cell. Integers are kept in float64, exact below 2^53.
struct ReducedCell {
    double rows[9];
    double transform[9];
    double inverse_transform[9];
    double spacing[3];  // between lattice planes, Angstrom
    double reach;       // no point of the cell centred on a lattice point is farther from it
    bool valid;
};

DRUSE_HD void subtract_row(ReducedCell *c, int target, int source, double n) {
    for (int k = 0; k < 3; ++k) {
        c->rows[3 * target + k] -= n * c->rows[3 * source + k];
        c->transform[3 * target + k] -= n * c->transform[3 * source + k];
    }
}

DRUSE_HD void swap_rows(ReducedCell *c, int first, int second) {
    for (int k = 0; k < 3; ++k) {
        const double row = c->rows[3 * first + k], integer = c->transform[3 * first + k];
        c->rows[3 * first + k] = c->rows[3 * second + k];
        c->rows[3 * second + k] = row;
        c->transform[3 * first + k] = c->transform[3 * second + k];
        c->transform[3 * second + k] = integer;
    }
}

DRUSE_HD void sort_rows(ReducedCell *c) {
    const int first[3] = {0, 1, 0}, second[3] = {1, 2, 1};
    for (int step = 0; step < 3; ++step) {
        const double *a = c->rows + 3 * first[step], *b = c->rows + 3 * second[step];
        if (dot3(a, a) > dot3(b, b)) swap_rows(c, first[step], second[step]);
    }
}

// Semaev, "A 3-dimensional lattice reduction algorithm", CaLC 2001: reduce the shorter pair, then take off the longest
// vector its closest one among the lattice of the pair; stop when nothing gets shorter.
DRUSE_HD ReducedCell reduce_cell(const double *cell) {
    const double margin = 1.0 - 1e-10;  // shorter by less than this is rounding
    ReducedCell c;
    c.valid = false;
    for (int k = 0; k < 9; ++k) {
        c.rows[k] = cell[k];
        c.transform[k] = k % 4 == 0 ? 1.0 : 0.0;
    }
    if (is_flat(cell)) return c;

    for (int round = 0; round < 200; ++round) {
        sort_rows(&c);
        const double *a = c.rows, *b = c.rows + 3, *d = c.rows + 6;
        const double aa = dot3(a, a), ab = dot3(a, b), bb = dot3(b, b);
        const double n = __builtin_rint(ab / aa);
        if (n != 0.0 && aa * n * n - 2.0 * n * ab + bb < margin * bb) {
            subtract_row(&c, 1, 0, n);
            continue;
        }
        const double ad = dot3(a, d), bd = dot3(b, d), dd = dot3(d, d);
        const double determinant = aa * bb - ab * ab;
        const double p = __builtin_rint((ad * bb - bd * ab) / determinant);
        const double q = __builtin_rint((bd * aa - ad * ab) / determinant);
        double best = dd, best_p = 0.0, best_q = 0.0;
        for (int dp = -1; dp <= 1; ++dp)
            for (int dq = -1; dq <= 1; ++dq) {
                const double x = p + dp, y = q + dq;
                const double length = dd + x * x * aa + y * y * bb + 2.0 * (x * y * ab - x * ad - y * bd);
                if (length < best) best = length, best_p = x, best_q = y;
            }
        if (!(best < margin * dd)) {
            c.valid = true;
            break;
        }
        subtract_row(&c, 2, 0, best_p);
        subtract_row(&c, 2, 1, best_q);
    }
    if (!c.valid) return c;

    // the rows again from the integers, free of the rounding gathered on the way
    for (int row = 0; row < 3; ++row)
        for (int k = 0; k < 3; ++k) {
            const double *t = c.transform + 3 * row;
            c.rows[3 * row + k] = t[0] * cell[k] + t[1] * cell[3 + k] + t[2] * cell[6 + k];
        }
    invert(c.transform, c.inverse_transform);
    for (int k = 0; k < 9; ++k) {
        c.inverse_transform[k] = __builtin_rint(c.inverse_transform[k]);
        if (!(__builtin_fabs(c.transform[k]) < 1e6 && __builtin_fabs(c.inverse_transform[k]) < 1e6)) c.valid = false;
    }
    double normal[3];
    cross3(c.rows + 3, c.rows + 6, normal);
    const double volume = __builtin_fabs(dot3(c.rows, normal));
    for (int k = 0; k < 3; ++k) {
        cross3(c.rows + 3 * ((k + 1) % 3), c.rows + 3 * ((k + 2) % 3), normal);
        c.spacing[k] = volume / __builtin_sqrt(dot3(normal, normal));
        if (!(c.spacing[k] >= 0.01)) c.valid = false;
    }
    double farthest = 0.0;
    for (int corner = 0; corner < 4; ++corner) {  // the other four are their negatives
        const double y = corner & 1 ? -0.5 : 0.5, z = corner & 2 ? -0.5 : 0.5;
        double v[3];
        for (int k = 0; k < 3; ++k) v[k] = 0.5 * c.rows[k] + y * c.rows[3 + k] + z * c.rows[6 + k];
        const double length = dot3(v, v);
        if (length > farthest) farthest = length;
    }
    c.reach = __builtin_sqrt(farthest);
    return c;
}

}  // namespace druse
