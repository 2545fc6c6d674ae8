// The periodic radius graph of one crystal.
//
// Both modes scan (source, image) for each target in float32 and keep the K nearest. `upstream` stops there, in the
// order of operations of CDVAE. `exact` first reduces the lattice, so that few images are in reach whatever cell
// describes the crystal, gives every pair its minimum image, and lets float32 only propose: everything that float32
// rounding could have kept or dropped wrongly is computed again in float64, which decides.
#pragma once

#include "../core/cell.hpp"
#include "nearest.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr double kCutoffTolerance = 1e-6;  // Angstrom: a shell exactly at the cutoff is not split by rounding
constexpr int64_t kMaxImages = 1 << 20;

// What a candidate's id stands for, in the precision that decides: vector = source[j] + shift[m] from the target to the
// image, image number = source_image[j] + image[m].
template <class Real>
struct Geometry {
    const Real *source, *shift;              // [3, n], [3, m_padded]
    const int32_t *source_image, *image;     // the same shapes
    int64_t n, m_padded;
    int image_bits;
};

// The smallest power of two that holds the images, as a number of bits; ids must fit int32.
static inline int image_bits(int64_t n, int64_t m) {
    int bits = 0;
    while ((static_cast<int64_t>(1) << bits) < m) ++bits;
    return n << bits <= INT32_MAX ? bits : -1;
}

// Vectors and distances of the ids; `work` holds [4, stride] of them.
template <class Real>
static inline void vectors_of(const Geometry<Real> &g, const int32_t *ids, int64_t count, Real *work, int64_t stride) {
    Real *x = work, *y = x + stride, *z = y + stride, *d = z + stride;
    const int32_t low = (1 << g.image_bits) - 1;
    for (int64_t e = 0; e < count; ++e) {
        const int64_t j = ids[e] >> g.image_bits, m = ids[e] & low;
        x[e] = g.source[j] + g.shift[m];
        y[e] = g.source[g.n + j] + g.shift[g.m_padded + m];
        z[e] = g.source[2 * g.n + j] + g.shift[2 * g.m_padded + m];
    }
    for (int64_t e = 0; e < count; ++e) {
        const Real d2 = (x[e] * x[e] + y[e] * y[e]) + z[e] * z[e];
        d[e] = sizeof(Real) == 4 ? static_cast<Real>(__builtin_sqrtf(static_cast<float>(d2)))
                                 : static_cast<Real>(__builtin_sqrt(static_cast<double>(d2)));
    }
}

// Writes the edges into target i from place `at` on. Turns the vectors in `work` into unit vectors from source to target.
template <class Real>
static inline void write_target(const Geometry<Real> &g, int64_t i, const int32_t *ids, int64_t count, Real *work,
                                int64_t stride, EdgeArrays *out, int64_t at) {
    Real *x = work, *y = x + stride, *z = y + stride;
    const Real *d = z + stride;
    const int32_t low = (1 << g.image_bits) - 1;
    int32_t *src = out->src.data + at, *dst = out->dst.data + at, *image = out->image.data + 3 * at;
    float *distance = out->distance.data + at, *unit = out->unit.data + 3 * at;
    for (int64_t e = 0; e < count; ++e) {
        const Real inverse = Real(-1) / d[e];
        x[e] *= inverse;
        y[e] *= inverse;
        z[e] *= inverse;
        distance[e] = static_cast<float>(d[e]);
        src[e] = ids[e] >> g.image_bits;
        dst[e] = static_cast<int32_t>(i);
    }
    for (int64_t e = 0; e < count; ++e) {
        const int64_t j = src[e], m = ids[e] & low;
        image[3 * e] = g.source_image[j] + g.image[m];
        image[3 * e + 1] = g.source_image[g.n + j] + g.image[g.m_padded + m];
        image[3 * e + 2] = g.source_image[2 * g.n + j] + g.image[2 * g.m_padded + m];
        unit[3 * e] = static_cast<float>(x[e]);
        unit[3 * e + 1] = static_cast<float>(y[e]);
        unit[3 * e + 2] = static_cast<float>(z[e]);
    }
}

// ---- upstream mode --------------------------------------------------------------------------------------------------

static inline bool upstream_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                                  const druse_graph_options *options, int64_t *total, uint32_t *status) {
    constexpr int64_t kImages = 27;
    const int64_t m_padded = padded(kImages);
    if (!s->float_atoms.reserve(6 * n) || !s->float_images.reserve(3 * m_padded) || !s->int_atoms.reserve(3 * n) ||
        !s->int_images.reserve(3 * m_padded))
        return false;
    float cell32[9];
    for (int k = 0; k < 9; ++k) cell32[k] = static_cast<float>(cell[k]);
    float *position = s->float_atoms.data, *source = position + 3 * n, *shift = s->float_images.data;
    for (int64_t i = 0; i < n; ++i)
        for (int k = 0; k < 3; ++k)
            position[k * n + i] = (static_cast<float>(frac[3 * i]) * cell32[k] +
                                   static_cast<float>(frac[3 * i + 1]) * cell32[3 + k]) +
                                  static_cast<float>(frac[3 * i + 2]) * cell32[6 + k];
    for (int64_t m = 0; m < m_padded; ++m) {
        const int32_t number[3] = {static_cast<int32_t>(m / 9 - 1), static_cast<int32_t>(m / 3 % 3 - 1),
                                   static_cast<int32_t>(m % 3 - 1)};
        const float a = static_cast<float>(number[0]), b = static_cast<float>(number[1]),
                    c = static_cast<float>(number[2]);
        for (int k = 0; k < 3; ++k) {
            s->int_images[k * m_padded + m] = number[k];
            shift[k * m_padded + m] = m < kImages ? (a * cell32[k] + b * cell32[3 + k]) + c * cell32[6 + k] : kFar;
        }
    }
    memset(s->int_atoms.data, 0, static_cast<size_t>(3 * n) * sizeof(int32_t));
    const Geometry<float> g = {source, shift, s->int_atoms.data, s->int_images.data, n, m_padded,
                               image_bits(n, m_padded)};
    if (g.image_bits < 0) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }

    const float radius = static_cast<float>(options->cutoff), r2 = radius * radius;
    const int64_t k_wanted = options->max_neighbors;
    for (int64_t i = 0; i < n; ++i) {
        Candidates c = {};
        if (!reserve_candidates(s, n * m_padded, &c)) return false;
        const float cx = position[i], cy = position[n + i], cz = position[2 * n + i];
        for (int64_t j = 0; j < n; ++j)
            scan_source(shift, m_padded, position[j], position[n + j], position[2 * n + j], cx, cy, cz, r2,
                        static_cast<int32_t>(j << g.image_bits), &c);
        if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;
        if (c.count == 0) *status |= DRUSE_STATUS_ISOLATED;
        int32_t *ids = c.id;
        int64_t chosen = c.count;
        if (c.count > k_wanted) {
            pad_candidates(&c);
            const float bound = kth_smallest(c, k_wanted, r2);
            if (!s->chosen_id.reserve(c.count + kWidth)) return false;
            ids = s->chosen_id.data;
            chosen = ids_up_to(c, bound, ids);
            if (chosen > k_wanted) {  // ties at rank K: the first ones in scan order
                int64_t spare = k_wanted - count_up_to(c, float_of_bits(bits_of_float(bound) - 1));
                chosen = 0;
                for (int64_t e = 0; e < c.count; ++e)
                    if (c.d2[e] < bound || (c.d2[e] == bound && spare-- > 0)) ids[chosen++] = c.id[e];
            }
        }
        if (!s->float_work.reserve(4 * chosen) || !s->edges.reserve(*total + chosen)) return false;
        for (int64_t j = 0; j < n; ++j) {
            source[j] = position[j] - cx;
            source[n + j] = position[n + j] - cy;
            source[2 * n + j] = position[2 * n + j] - cz;
        }
        vectors_of(g, ids, chosen, s->float_work.data, chosen);
        s->first_edge[i] = *total;
        write_target(g, i, ids, chosen, s->float_work.data, chosen, &s->edges, *total);
        *total += chosen;
    }
    s->first_edge[n] = *total;
    return true;
}

// ---- exact mode -----------------------------------------------------------------------------------------------------

struct ExactCell {
    ReducedCell reduced;
    double *coordinate;    // [3, n] in the reduced cell, wrapped to [0, 1)
    double *translation;   // [3, n] wrapped = given + translation, in the given cell
    double *source;        // [3, n] from the target to each source's nearest image
    float *source32;       // [3, n]
    int32_t *source_image; // [3, n]
    double *shift;         // [3, m_padded]
    float *shift32;        // [3, m_padded]
    int32_t *image;        // [3, m_padded]
    int64_t m_padded;
    int image_bits;
    float slack;           // bound on the error of a float32 distance
};

// Coordinates in the reduced cell, wrapped, and the translations that took them there.
static inline bool wrap_atoms(ExactCell *x, int64_t n, const double *frac) {
    const ReducedCell &r = x->reduced;
    bool good = true;
    for (int64_t i = 0; i < n; ++i) {
        double given[3], whole[3], reduced_whole[3];
        for (int k = 0; k < 3; ++k) {
            whole[k] = __builtin_floor(frac[3 * i + k]);
            given[k] = frac[3 * i + k] - whole[k];
        }
        for (int k = 0; k < 3; ++k) {
            const double f = given[0] * r.inverse_transform[k] + given[1] * r.inverse_transform[3 + k] +
                             given[2] * r.inverse_transform[6 + k];
            reduced_whole[k] = __builtin_floor(f);
            x->coordinate[k * n + i] = f - reduced_whole[k];
        }
        for (int k = 0; k < 3; ++k) {
            const double t = -(whole[k] + (reduced_whole[0] * r.transform[k] + reduced_whole[1] * r.transform[3 + k] +
                                           reduced_whole[2] * r.transform[6 + k]));
            good &= __builtin_fabs(t) < 5e8;
            x->translation[k * n + i] = t;
        }
    }
    return good;
}

// The images that can bring a source at its minimum image within the cutoff of a target.
static inline bool list_images(GraphScratch *s, int64_t n, double cutoff, ExactCell *x, uint32_t *status) {
    const ReducedCell &r = x->reduced;
    // a minimum image is within +-1/2 along each axis, so |number + offset| spacing <= cutoff bounds the number
    int64_t most[3], box = 1;
    for (int k = 0; k < 3; ++k) {
        const double planes = __builtin_floor((cutoff + kCutoffTolerance) / r.spacing[k] + 0.5 + 1e-9);
        most[k] = planes < kMaxImages ? static_cast<int64_t>(planes) : kMaxImages;
        box *= 2 * most[k] + 1;
        if (box > 8 * kMaxImages) {
            *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
            return true;
        }
    }
    const int64_t places = padded(box);
    if (!s->double_images.reserve(3 * places) || !s->float_images.reserve(3 * places) ||
        !s->int_images.reserve(3 * places))
        return false;
    const double farthest = cutoff + r.reach + 1e-3, farthest2 = farthest * farthest;
    int64_t m = 0;
    int32_t *number = s->int_images.data;
    for (int64_t a = -most[0]; a <= most[0]; ++a)
        for (int64_t b = -most[1]; b <= most[1]; ++b) {
            const double da = static_cast<double>(a), db = static_cast<double>(b);
            const double vx = da * r.rows[0] + db * r.rows[3], vy = da * r.rows[1] + db * r.rows[4],
                         vz = da * r.rows[2] + db * r.rows[5];
            for (int64_t c = -most[2]; c <= most[2]; ++c) {
                const double dc = static_cast<double>(c);
                const double wx = vx + dc * r.rows[6], wy = vy + dc * r.rows[7], wz = vz + dc * r.rows[8];
                if (!((wx * wx + wy * wy) + wz * wz <= farthest2)) continue;
                number[3 * m] = static_cast<int32_t>(a);
                number[3 * m + 1] = static_cast<int32_t>(b);
                number[3 * m + 2] = static_cast<int32_t>(c);
                ++m;
            }
        }
    x->m_padded = padded(m);
    x->image_bits = image_bits(n, x->m_padded);
    if (m > kMaxImages || x->image_bits < 0) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }
    // image numbers of the given cell, by component, beside the shifts: first the shifts, which read the triples
    x->shift = s->double_images.data;
    x->shift32 = s->float_images.data;
    if (!s->chosen_id.reserve(3 * x->m_padded)) return false;
    x->image = s->chosen_id.data;
    for (int64_t i = 0; i < x->m_padded; ++i)
        for (int k = 0; k < 3; ++k) {
            const bool used = i < m;
            const double a = used ? number[3 * i] : 0, b = used ? number[3 * i + 1] : 0, c = used ? number[3 * i + 2] : 0;
            const double shift = (a * r.rows[k] + b * r.rows[3 + k]) + c * r.rows[6 + k];
            x->shift[k * x->m_padded + i] = shift;
            x->shift32[k * x->m_padded + i] = used ? static_cast<float>(shift) : kFar;
            x->image[k * x->m_padded + i] =
                static_cast<int32_t>(a * r.transform[k] + b * r.transform[3 + k] + c * r.transform[6 + k]);
        }
    memcpy(s->int_images.data, x->image, static_cast<size_t>(3 * x->m_padded) * sizeof(int32_t));
    x->image = s->int_images.data;
    x->slack = static_cast<float>(8.0 * 6e-8 * (farthest + r.reach));
    return true;
}

// Vectors from atom i to the nearest image of every atom, and which image that is.
static inline void minimum_images(ExactCell *x, int64_t n, int64_t i) {
    const double *rows = x->reduced.rows, *transform = x->reduced.transform, *t = x->translation;
    const double *c0 = x->coordinate, *c1 = c0 + n, *c2 = c1 + n;
    const double round = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to an integer
    for (int64_t j = 0; j < n; ++j) {
        const double d0 = c0[j] - c0[i], d1 = c1[j] - c1[i], d2 = c2[j] - c2[i];
        const double w0 = (d0 + round) - round, w1 = (d1 + round) - round, w2 = (d2 + round) - round;
        const double f0 = d0 - w0, f1 = d1 - w1, f2 = d2 - w2;
        for (int k = 0; k < 3; ++k) {
            const double v = (f0 * rows[k] + f1 * rows[3 + k]) + f2 * rows[6 + k];
            x->source[k * n + j] = v;
            x->source32[k * n + j] = static_cast<float>(v);
            x->source_image[k * n + j] =
                static_cast<int32_t>((t[k * n + j] - t[k * n + i]) -
                                     (w0 * transform[k] + w1 * transform[3 + k] + w2 * transform[6 + k]));
        }
    }
}

static inline bool exact_target(GraphScratch *s, ExactCell *x, int64_t n, int64_t i,
                                const druse_graph_options *options, int64_t *total, uint32_t *status) {
    const double cutoff = options->cutoff + kCutoffTolerance;
    const float reach = static_cast<float>(cutoff) + x->slack, r2 = reach * reach;
    const int64_t k_wanted = options->max_neighbors, m_padded = x->m_padded;
    const Geometry<double> g = {x->source, x->shift, x->source_image, x->image, n, m_padded, x->image_bits};
    minimum_images(x, n, i);
    Candidates c = {};
    for (int64_t j = 0; j < n; ++j) {
        if (!reserve_candidates(s, c.count + m_padded, &c)) return false;
        scan_source(x->shift32, m_padded, x->source32[j], x->source32[n + j], x->source32[2 * n + j], 0.0f, 0.0f, 0.0f,
                    r2, static_cast<int32_t>(j << x->image_bits), &c);
    }
    if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;

    // what float32 cannot rule out ...
    const double tolerance = options->shell_tolerance > 0.0 ? options->shell_tolerance : 0.0;
    const double slack = 2.0 * static_cast<double>(x->slack);
    int32_t *ids = c.id;
    int64_t chosen = c.count;
    double kth32 = 0.0;
    if (c.count > k_wanted) {
        pad_candidates(&c);
        kth32 = __builtin_sqrtf(kth_smallest(c, k_wanted, r2));
        const float widened = static_cast<float>(kth32 + tolerance + 2.0 * slack);
        if (!s->chosen_id.reserve(c.count + kWidth)) return false;
        ids = s->chosen_id.data;
        chosen = ids_up_to(c, widened * widened, ids);
    }

    // ... float64 decides
    if (!s->double_work.reserve(5 * chosen) || !s->edges.reserve(*total + chosen)) return false;
    double *work = s->double_work.data, *d = work + 3 * chosen, *sorted = d + chosen;
    vectors_of(g, ids, chosen, work, chosen);
    double farthest = cutoff;
    int64_t ties = INT64_MAX, doubtful = 0, outside = 0;
    if (chosen > k_wanted) {
        // the K-th distance is kth32 up to float32's error; it must be known better only where that changes the choice
        const double sure = kth32 + tolerance - slack, excluded = kth32 + tolerance + slack;
        for (int64_t e = 0; e < chosen; ++e) doubtful += (d[e] > sure) & (d[e] <= excluded);
        double kth = kth32;
        if (doubtful > 0 || options->shell_tolerance < 0.0) {
            memcpy(sorted, d, static_cast<size_t>(chosen) * sizeof *sorted);
            kth = kth_smallest_f64(sorted, chosen, k_wanted);
        }
        if (kth + tolerance < farthest) farthest = kth + tolerance;
        if (options->shell_tolerance < 0.0 && kth <= cutoff) {
            ties = k_wanted;
            for (int64_t e = 0; e < chosen; ++e) ties -= d[e] < kth;
        }
    }
    for (int64_t e = 0; e < chosen; ++e) outside += !(d[e] < farthest);
    int64_t kept = outside == 0 ? chosen : 0;
    for (int64_t e = 0; e < chosen && outside > 0; ++e) {
        if (!(d[e] <= farthest) || (d[e] == farthest && ties-- <= 0)) continue;
        if (kept < e) {
            ids[kept] = ids[e];
            for (int k = 0; k < 4; ++k) work[k * chosen + kept] = work[k * chosen + e];
        }
        ++kept;
    }
    s->first_edge[i] = *total;
    write_target(g, i, ids, kept, work, chosen, &s->edges, *total);
    *total += kept;
    if (kept == 0) *status |= DRUSE_STATUS_ISOLATED;
    return true;
}

static inline bool exact_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                               const druse_graph_options *options, int64_t *total, uint32_t *status) {
    ExactCell x = {};
    x.reduced = reduce_cell(cell);
    if (!s->double_atoms.reserve(9 * n) || !s->float_atoms.reserve(3 * n) || !s->int_atoms.reserve(3 * n)) return false;
    x.coordinate = s->double_atoms.data;
    x.translation = x.coordinate + 3 * n;
    x.source = x.translation + 3 * n;
    x.source32 = s->float_atoms.data;
    x.source_image = s->int_atoms.data;
    if (!x.reduced.valid || !wrap_atoms(&x, n, frac)) {
        *status |= DRUSE_STATUS_SINGULAR;
        return true;
    }
    if (!list_images(s, n, options->cutoff, &x, status)) return false;
    if (*status & DRUSE_STATUS_TOO_MANY_IMAGES) return true;
    for (int64_t i = 0; i < n; ++i)
        if (!exact_target(s, &x, n, i, options, total, status)) return false;
    s->first_edge[n] = *total;
    return true;
}

}  // namespace DRUSE_ISA
}  // namespace druse
