// The periodic radius graph of one crystal.
//
// Both modes scan (source, image) for each target in float32 and keep the K nearest. `upstream` stops there, in the
// order of operations of CDVAE. `exact` first reduces the lattice, so that few images are in reach whatever cell
// describes the crystal, gives every pair its minimum image, and lets float32 only propose: everything that float32
// rounding could have kept or dropped wrongly is computed again in float64, which decides. (Only whether a pair coincides,
// at 0.01 Angstrom, is left to float32.)
#pragma once

#include "../core/images.hpp"
#include "nearest.hpp"

namespace druse {
namespace DRUSE_ISA {

// Three components and a fourth that is 0, as one vector; unaligned in memory.
template <class Real>
struct Four;
template <>
struct Four<float> {
    typedef float type __attribute__((vector_size(16), aligned(4)));
};
template <>
struct Four<double> {
    typedef double type __attribute__((vector_size(32), aligned(8)));
};
typedef Four<float>::type Float4;
typedef Four<double>::type Double4;
typedef int32_t Int4 __attribute__((vector_size(16), aligned(4)));

static inline Float4 to_float(const Float4 &v) { return v; }
static inline Float4 to_float(const Double4 &v) { return __builtin_convertvector(v, Float4); }
static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

static inline Double4 double4(const double *v) { return Double4{v[0], v[1], v[2], 0.0}; }

// What a candidate's id stands for, in the precision that decides: vector = source[j] + shift[m] from the target to the
// image, image number = source_image[j] + image[m].
template <class Real>
struct Geometry {
    const typename Four<Real>::type *source, *shift;  // [n], [m]
    const Int4 *source_image, *image;                 // [n], [m]
    int image_bits;
};

// Vectors [count, 4] and distances [count] of the ids.
template <class Real>
static inline void vectors_of(const Geometry<Real> &g, const int32_t *ids, int64_t count,
                              typename Four<Real>::type *vectors, Real *distances) {
    const int32_t low = (1 << g.image_bits) - 1;
    for (int64_t e = 0; e < count; ++e) vectors[e] = g.source[ids[e] >> g.image_bits] + g.shift[ids[e] & low];
    const Real *v = reinterpret_cast<const Real *>(vectors);
    for (int64_t e = 0; e < count; ++e)
        distances[e] = root(sum_of_squares(v[4 * e], v[4 * e + 1], v[4 * e + 2]));
}

// Writes the edges into target i from place `at` on. Stores of four components overlap the next edge's place, so `out` needs
// one spare edge.
template <class Real>
static inline void write_target(const Geometry<Real> &g, int64_t i, const int32_t *ids, int64_t count,
                                const typename Four<Real>::type *vectors, const Real *distances, EdgeArrays *out,
                                int64_t at) {
    const int32_t low = (1 << g.image_bits) - 1;
    int32_t *src = out->src.data + at, *dst = out->dst.data + at, *image = out->image.data + 3 * at;
    float *distance = out->distance.data + at, *unit = out->unit.data + 3 * at;
    for (int64_t e = 0; e < count; ++e) {
        distance[e] = static_cast<float>(distances[e]);
        src[e] = ids[e] >> g.image_bits;
        dst[e] = static_cast<int32_t>(i);
    }
    for (int64_t e = 0; e < count; ++e) {
        *reinterpret_cast<Int4 *>(image + 3 * e) = g.source_image[src[e]] + g.image[ids[e] & low];
        *reinterpret_cast<Float4 *>(unit + 3 * e) = to_float(vectors[e] / -distances[e]);
    }
}

// ---- upstream mode --------------------------------------------------------------------------------------------------

static inline bool upstream_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                                  const druse_graph_options *options, int64_t *total, uint32_t *status) {
    constexpr int64_t kImages = 27;
    const int64_t m_padded = padded(kImages);
    if (is_flat(cell)) {
        *status |= DRUSE_STATUS_SINGULAR;
        return true;
    }
    const int bits = image_bits(n, kImages);
    if (bits < 0) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }
    if (!s->float_atoms.reserve(8 * n) || !s->float_images.reserve(7 * m_padded) || !s->int_atoms.reserve(4 * n) ||
        !s->int_images.reserve(4 * kImages))
        return false;
    float cell32[9];
    for (int k = 0; k < 9; ++k) cell32[k] = static_cast<float>(cell[k]);
    Float4 *position = reinterpret_cast<Float4 *>(s->float_atoms.data), *source = position + n;
    float *shifts = s->float_images.data;  // by component, for the scan
    Float4 *shift = reinterpret_cast<Float4 *>(shifts + 3 * m_padded);
    Int4 *image = reinterpret_cast<Int4 *>(s->int_images.data);
    for (int64_t i = 0; i < n; ++i) {
        const float a = static_cast<float>(frac[3 * i]), b = static_cast<float>(frac[3 * i + 1]),
                    c = static_cast<float>(frac[3 * i + 2]);
        position[i] = Float4{};
        for (int k = 0; k < 3; ++k) position[i][k] = combine(a, b, c, cell32[k], cell32[3 + k], cell32[6 + k]);
    }
    for (int64_t m = 0; m < m_padded; ++m) {
        const Int4 number = {static_cast<int32_t>(m / 9 - 1), static_cast<int32_t>(m / 3 % 3 - 1),
                             static_cast<int32_t>(m % 3 - 1), 0};
        const float a = static_cast<float>(number[0]), b = static_cast<float>(number[1]),
                    c = static_cast<float>(number[2]);
        Float4 moved = {};
        for (int k = 0; k < 3; ++k) {
            moved[k] = combine(a, b, c, cell32[k], cell32[3 + k], cell32[6 + k]);
            shifts[k * m_padded + m] = m < kImages ? moved[k] : kFar;
        }
        if (m < kImages) shift[m] = moved, image[m] = number;
    }
    memset(s->int_atoms.data, 0, static_cast<size_t>(4 * n) * sizeof(int32_t));
    const Geometry<float> g = {source, shift, reinterpret_cast<Int4 *>(s->int_atoms.data), image, bits};

    const float radius = static_cast<float>(options->cutoff), r2 = radius * radius;
    const int64_t k_wanted = options->max_neighbors;
    for (int64_t i = 0; i < n; ++i) {
        Candidates c = {};
        if (!reserve_candidates(s, n * m_padded, &c)) return false;
        for (int64_t j = 0; j < n; ++j)
            scan_source(shifts, m_padded, position[j][0], position[j][1], position[j][2], position[i][0], position[i][1],
                        position[i][2], r2, static_cast<int32_t>(j << bits), &c);
        if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;
        if (c.count == 0) *status |= DRUSE_STATUS_ISOLATED;
        int32_t *ids = c.id;
        int64_t chosen = c.count;
        if (c.count > k_wanted) {
            pad_candidates(&c);
            const float bound = kth_smallest(c, k_wanted, r2);
            const int64_t below = count_up_to(c, float_of_bits(bits_of_float(bound) - 1));
            if (!s->chosen_id.reserve(c.count + kWidth)) return false;
            ids = s->chosen_id.data;
            chosen = ids_up_to(c, bound, k_wanted - below, ids);  // ties at rank K: the first ones in scan order
        }
        if (!s->float_work.reserve(5 * chosen) || !s->edges.reserve(*total + chosen + 1)) return false;
        for (int64_t j = 0; j < n; ++j) source[j] = position[j] - position[i];
        Float4 *vectors = reinterpret_cast<Float4 *>(s->float_work.data);
        float *distances = s->float_work.data + 4 * chosen;
        vectors_of(g, ids, chosen, vectors, distances);
        s->first_edge[i] = *total;
        write_target(g, i, ids, chosen, vectors, distances, &s->edges, *total);
        *total += chosen;
    }
    s->first_edge[n] = *total;
    return true;
}

// ---- exact mode -----------------------------------------------------------------------------------------------------

struct ExactCell {
    ReducedCell reduced;
    Double4 *coordinate;   // [n] in the reduced cell, wrapped to [0, 1)
    Double4 *translation;  // [n] wrapped = given + translation, in the given cell
    Double4 *source;       // [n] from the target to each source's nearest image
    Int4 *source_image;    // [n]
    Double4 *shift;        // [m]
    Int4 *image;           // [m]
    float *shifts;         // [3, m_padded] for the scan
    int64_t m_padded;
    int image_bits;
    float slack;           // bound on the error of a float32 distance
};

// Coordinates in the reduced cell, wrapped, and the translations that took them there.
static inline bool wrap_atoms(ExactCell *x, int64_t n, const double *frac) {
    bool good = true;
    for (int64_t i = 0; i < n; ++i) {
        double coordinate[3], translation[3];
        good &= wrap_atom(x->reduced, frac + 3 * i, coordinate, translation);
        x->coordinate[i] = double4(coordinate);
        x->translation[i] = double4(translation);
    }
    return good;
}

// The images that can bring a source at its minimum image within the cutoff of a target.
static inline bool list_images(GraphScratch *s, int64_t n, double cutoff, ExactCell *x, uint32_t *status) {
    const ReducedCell &r = x->reduced;
    const ImageBox box = image_box(r, cutoff + kCutoffTolerance);
    if (box.size == 0) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }
    const int64_t places = box.size < kMaxImages ? box.size : kMaxImages;
    if (!s->double_images.reserve(4 * places) || !s->int_images.reserve(4 * places) ||
        !s->float_images.reserve(3 * padded(places)))
        return false;
    x->shift = reinterpret_cast<Double4 *>(s->double_images.data);
    x->image = reinterpret_cast<Int4 *>(s->int_images.data);
    const double farthest = farthest_image(r, cutoff), farthest2 = farthest * farthest;
    const Double4 row0 = double4(r.rows), row1 = double4(r.rows + 3), row2 = double4(r.rows + 6);
    const Double4 t0 = double4(r.transform), t1 = double4(r.transform + 3), t2 = double4(r.transform + 6);
    int64_t m = 0;
    for (int32_t a = -box.most[0]; a <= box.most[0]; ++a)
        for (int32_t b = -box.most[1]; b <= box.most[1]; ++b)
            for (int32_t c = -box.most[2]; c <= box.most[2]; ++c) {
                const double na = static_cast<double>(a), nb = static_cast<double>(b), nc = static_cast<double>(c);
                const Double4 shift = combine(na, nb, nc, row0, row1, row2);
                if (!(sum_of_squares(shift[0], shift[1], shift[2]) <= farthest2)) continue;
                if (m == kMaxImages) {
                    *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
                    return true;
                }
                x->shift[m] = shift;
                x->image[m++] = __builtin_convertvector(combine(na, nb, nc, t0, t1, t2), Int4);
            }
    x->m_padded = padded(m);
    x->image_bits = image_bits(n, m);
    if (x->image_bits < 0) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }
    x->shifts = s->float_images.data;
    for (int64_t i = 0; i < x->m_padded; ++i)
        for (int k = 0; k < 3; ++k)
            x->shifts[k * x->m_padded + i] = i < m ? static_cast<float>(x->shift[i][k]) : kFar;
    x->slack = distance_error(r, farthest);
    return true;
}

// Vectors from atom i to the nearest image of every atom, and which image that is.
static inline void minimum_images(ExactCell *x, int64_t n, int64_t i) {
    const ReducedCell &r = x->reduced;
    const Double4 row0 = double4(r.rows), row1 = double4(r.rows + 3), row2 = double4(r.rows + 6);
    const Double4 t0 = double4(r.transform), t1 = double4(r.transform + 3), t2 = double4(r.transform + 6);
    const Double4 here = x->coordinate[i], translation = x->translation[i];
    for (int64_t j = 0; j < n; ++j) {
        const Double4 difference = x->coordinate[j] - here;
        const Double4 whole = nearest_integer(difference);
        const Double4 f = difference - whole;
        x->source[j] = combine(f[0], f[1], f[2], row0, row1, row2);
        x->source_image[j] = __builtin_convertvector(
            (x->translation[j] - translation) - combine(whole[0], whole[1], whole[2], t0, t1, t2), Int4);
    }
}

static inline bool exact_target(GraphScratch *s, ExactCell *x, int64_t n, int64_t i,
                                const druse_graph_options *options, int64_t *total, uint32_t *status) {
    const double cutoff = options->cutoff + kCutoffTolerance;
    const float reach = static_cast<float>(cutoff) + x->slack, r2 = reach * reach;
    const int64_t k_wanted = options->max_neighbors, m_padded = x->m_padded;
    const Geometry<double> g = {x->source, x->shift, x->source_image, x->image, x->image_bits};
    minimum_images(x, n, i);
    Candidates c = {};
    for (int64_t j = 0; j < n; ++j) {
        if (!reserve_candidates(s, c.count + m_padded, &c)) return false;
        const Float4 v = to_float(x->source[j]);
        scan_source(x->shifts, m_padded, v[0], v[1], v[2], 0.0f, 0.0f, 0.0f, r2,
                    static_cast<int32_t>(j << x->image_bits), &c);
    }
    if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;

    // what float32 cannot rule out ...
    const double tolerance = options->shell_tolerance > 0.0 ? options->shell_tolerance : 0.0;
    int32_t *ids = c.id;
    int64_t chosen = c.count;
    double kth32 = 0.0;
    Doubt doubt = {};
    if (c.count > k_wanted) {
        pad_candidates(&c);
        kth32 = __builtin_sqrtf(kth_smallest(c, k_wanted, r2));
        doubt = doubt_of(kth32, tolerance, x->slack);
        if (!s->chosen_id.reserve(c.count + kWidth)) return false;
        ids = s->chosen_id.data;
        chosen = ids_up_to(c, doubt.bound, INT64_MAX, ids);
    }

    // ... float64 decides
    if (!s->double_work.reserve(6 * chosen) || !s->edges.reserve(*total + chosen + 1)) return false;
    Double4 *vectors = reinterpret_cast<Double4 *>(s->double_work.data);
    double *d = s->double_work.data + 4 * chosen, *sorted = d + chosen;
    vectors_of(g, ids, chosen, vectors, d);
    double farthest = cutoff;
    int64_t ties = INT64_MAX, doubtful = 0, outside = 0;
    if (chosen > k_wanted) {
        // the K-th distance is kth32 up to float32's error; it must be known better only where that changes the choice
        for (int64_t e = 0; e < chosen; ++e) doubtful += (d[e] > doubt.sure) & (d[e] <= doubt.excluded);
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
        ids[kept] = ids[e];
        vectors[kept] = vectors[e];
        d[kept++] = d[e];
    }
    s->first_edge[i] = *total;
    write_target(g, i, ids, kept, vectors, d, &s->edges, *total);
    *total += kept;
    if (kept == 0) *status |= DRUSE_STATUS_ISOLATED;
    return true;
}

static inline bool exact_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                               const druse_graph_options *options, int64_t *total, uint32_t *status) {
    ExactCell x = {};
    x.reduced = reduce_cell(cell);
    if (!s->double_atoms.reserve(12 * n) || !s->int_atoms.reserve(4 * n)) return false;
    x.coordinate = reinterpret_cast<Double4 *>(s->double_atoms.data);
    x.translation = x.coordinate + n;
    x.source = x.translation + n;
    x.source_image = reinterpret_cast<Int4 *>(s->int_atoms.data);
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
