// The periodic radius graph of one crystal.
//
// Both modes scan (source, image) for each target in float32 and keep the K nearest. `upstream` stops there, in the
// order of operations of CDVAE. `exact` first reduces the lattice, so that few images are in reach whatever cell
// describes the crystal, gives every pair its minimum image, and lets float32 only propose: everything that float32
// rounding could have kept or dropped wrongly is computed again in float64, which decides.
#pragma once

#include "../core/cell.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr float kCoincident2 = 1e-4f;        // (0.01 Angstrom)^2: such pairs have no edge in CDVAE, nor here
constexpr double kCutoffTolerance = 1e-6;    // Angstrom: a shell exactly at the cutoff is not split by rounding
constexpr int64_t kMaxImages = 1 << 20;
constexpr int kSmall = 16;                   // candidates left in the bracket when bisection ends
constexpr float kFar = 1e18f;                // shift of a padding image: its squared distance overflows to infinity

static inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

static inline bool all_finite(const double *values, int64_t count, double bound) {
    bool good = true;
    for (int64_t i = 0; i < count; ++i) good &= __builtin_fabs(values[i]) <= bound;
    return good;
}

// Candidates of one target: squared distances and ids (source * padded image count + image), in scan order.
struct Candidates {
    float *d2;
    int32_t *id;
    int64_t count;
    int64_t dropped;  // pairs that coincide, the atom with itself among them
};

// Appends the images of one source at (x, y, z) seen from (cx, cy, cz) within r2. In upstream's order: the image's shift
// is added to the source first.
static inline void scan_source(const float *shifts, int64_t m_padded, float x, float y, float z, float cx, float cy,
                               float cz, float r2, int32_t first_id, Candidates *out) {
    const Vector vx = splat(x), vy = splat(y), vz = splat(z), vcx = splat(cx), vcy = splat(cy), vcz = splat(cz);
    const Vector limit = splat(r2), least = splat(kCoincident2);
    for (int64_t m = 0; m < m_padded; m += kWidth) {
        const Vector dx = vcx - (vx + load(shifts + m));
        const Vector dy = vcy - (vy + load(shifts + m_padded + m));
        const Vector dz = vcz - (vz + load(shifts + 2 * m_padded + m));
        const Vector d2 = (dx * dx + dy * dy) + dz * dz;
        const uint32_t within = lanes(d2 <= limit);
        if (within == 0) continue;
        const uint32_t distinct = lanes(d2 > least);
        out->dropped += population(within & ~distinct);
        out->count += append(within & distinct, d2, first_id + static_cast<int32_t>(m), out->d2 + out->count,
                             out->id + out->count);
    }
}

// values[count ..] up to the next multiple of the width must be infinite.
static inline int64_t count_up_to(const float *values, int64_t count, float bound) {
    const Vector limit = splat(bound);
    Mask sum = {};
    for (int64_t i = 0; i < count; i += kWidth) sum += load(values + i) <= limit;
    int64_t total = 0;
    for (int l = 0; l < kWidth; ++l) total -= sum[l];
    return total;
}

// The K-th smallest of `count` > K positive values, none above `largest`; padding as for count_up_to. Bisects the bits of
// the floats, guided by the counts, until few are left in the bracket (or all in it are equal).
static inline float kth_smallest(const float *values, int64_t count, int64_t k, float largest) {
    uint32_t low = bits_of_float(kCoincident2), high = bits_of_float(largest);  // count(low) < k <= count(high)
    int64_t below = 0, up_to = count;
    for (int round = 0; up_to - below > kSmall && high - low > 1; ++round) {
        uint32_t middle = low + (high - low) / 2;
        if (round % 2 == 0) {  // as if distances were spread evenly over the bracket
            const float a = float_of_bits(low), b = float_of_bits(high);
            const float share = (static_cast<float>(k - below) + 0.5f) / (static_cast<float>(up_to - below) + 1.0f);
            const uint32_t guess = bits_of_float(a + (b - a) * share);
            if (guess > low && guess < high) middle = guess;
        }
        const int64_t counted = count_up_to(values, count, float_of_bits(middle));
        if (counted < k) {
            low = middle;
            below = counted;
        } else {
            high = middle;
            up_to = counted;
        }
    }
    if (high - low <= 1) return float_of_bits(high);

    float few[kSmall + 2 * kWidth] = {};
    int32_t unused[kSmall + 2 * kWidth];
    const Vector floor = splat(float_of_bits(low)), ceiling = splat(float_of_bits(high));
    int64_t n = 0;
    for (int64_t i = 0; i < count; i += kWidth) {
        const Vector v = load(values + i);
        const uint32_t inside = lanes((v > floor) & (v <= ceiling));
        if (inside != 0) n += append(inside, v, 0, few + n, unused);
    }
    for (int64_t i = 1; i < n; ++i) {  // insertion sort
        const float value = few[i];
        int64_t j = i;
        for (; j > 0 && few[j - 1] > value; --j) few[j] = few[j - 1];
        few[j] = value;
    }
    return few[k - below - 1];
}

// The same for a few float64 values, which it reorders (Hoare's selection).
static inline double kth_smallest_f64(double *values, int64_t count, int64_t k) {
    int64_t low = 0, high = count - 1;
    const int64_t wanted = k - 1;
    while (low < high) {
        const double pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) ++i;
            while (values[j] > pivot) --j;
            if (i <= j) {
                const double swapped = values[i];
                values[i++] = values[j];
                values[j--] = swapped;
            }
        }
        if (wanted <= j)
            high = j;
        else if (wanted >= i)
            low = i;
        else
            break;
    }
    return values[wanted];
}

static inline bool reserve_candidates(GraphScratch *s, int64_t wanted, Candidates *c) {
    if (!s->candidate_d2.reserve(wanted + 2 * kWidth) || !s->candidate_id.reserve(wanted + 2 * kWidth)) return false;
    c->d2 = s->candidate_d2.data;
    c->id = s->candidate_id.data;
    return true;
}

static inline void pad_candidates(Candidates *c) {
    for (int l = 0; l < kWidth; ++l) c->d2[c->count + l] = __builtin_inff();
}

// ---- upstream mode --------------------------------------------------------------------------------------------------

static inline bool upstream_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                                  const druse_graph_options *options, int64_t *total, uint32_t *status) {
    constexpr int64_t kImages = 27;
    const int64_t m_padded = padded(kImages);
    if (!s->positions.reserve(3 * n) || !s->image_shifts.reserve(3 * m_padded)) return false;
    float cell32[9];
    for (int k = 0; k < 9; ++k) cell32[k] = static_cast<float>(cell[k]);
    float *position = s->positions.data, *shift = s->image_shifts.data;
    for (int64_t i = 0; i < n; ++i)
        for (int k = 0; k < 3; ++k)
            position[k * n + i] = (static_cast<float>(frac[3 * i]) * cell32[k] +
                                   static_cast<float>(frac[3 * i + 1]) * cell32[3 + k]) +
                                  static_cast<float>(frac[3 * i + 2]) * cell32[6 + k];
    for (int64_t m = 0; m < m_padded; ++m) {
        const float a = static_cast<float>(m / 9 - 1), b = static_cast<float>(m / 3 % 3 - 1),
                    c = static_cast<float>(m % 3 - 1);
        for (int k = 0; k < 3; ++k)
            shift[k * m_padded + m] = m < kImages ? (a * cell32[k] + b * cell32[3 + k]) + c * cell32[6 + k] : kFar;
    }

    const float radius = static_cast<float>(options->cutoff), r2 = radius * radius;
    const int64_t k_wanted = options->max_neighbors;
    *total = 0;
    for (int64_t i = 0; i < n; ++i) {
        Candidates c = {};
        if (!reserve_candidates(s, n * m_padded, &c)) return false;
        const float cx = position[i], cy = position[n + i], cz = position[2 * n + i];
        for (int64_t j = 0; j < n; ++j)
            scan_source(shift, m_padded, position[j], position[n + j], position[2 * n + j], cx, cy, cz, r2,
                        static_cast<int32_t>(j * m_padded), &c);
        if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;
        if (c.count == 0) *status |= DRUSE_STATUS_ISOLATED;
        float bound = r2;
        int64_t ties = c.count;
        if (c.count > k_wanted) {
            pad_candidates(&c);
            bound = kth_smallest(c.d2, c.count, k_wanted, r2);
            ties = k_wanted - count_up_to(c.d2, c.count, float_of_bits(bits_of_float(bound) - 1));
        }
        if (!s->edges.reserve(*total + (c.count < k_wanted ? c.count : k_wanted))) return false;
        s->first_edge[i] = *total;
        int64_t j = 0;
        for (int64_t e = 0; e < c.count; ++e) {
            if (!(c.d2[e] <= bound) || (c.d2[e] == bound && ties-- <= 0)) continue;
            while (c.id[e] >= (j + 1) * m_padded) ++j;
            const int64_t m = c.id[e] - j * m_padded;
            const float vx = (position[j] - cx) + shift[m];
            const float vy = (position[n + j] - cy) + shift[m_padded + m];
            const float vz = (position[2 * n + j] - cz) + shift[2 * m_padded + m];
            const float distance = __builtin_sqrtf((vx * vx + vy * vy) + vz * vz);
            EdgeRecord *record = &s->edges[(*total)++];
            *record = {static_cast<int32_t>(j), static_cast<int32_t>(i),
                       {static_cast<int32_t>(m / 9 - 1), static_cast<int32_t>(m / 3 % 3 - 1),
                        static_cast<int32_t>(m % 3 - 1)},
                       distance, {-vx / distance, -vy / distance, -vz / distance}};
        }
    }
    s->first_edge[n] = *total;
    return true;
}

// ---- exact mode -----------------------------------------------------------------------------------------------------

struct ExactCell {
    ReducedCell reduced;
    double *coordinate;   // [3, n] in the reduced cell, wrapped to [0, 1)
    double *translation;  // [3, n] wrapped = given + translation, in the given cell
    double *offset;       // [3, n] fractional vector from the target to each source's nearest image
    double *number;       // [3, m] image numbers in the reduced cell
    float *shift;         // [3, m padded]
    float *relative;      // [3, n] Cartesian `offset`
    int64_t m, m_padded;
    float slack;          // bound on the error of a float32 distance
};

static inline bool prepare_exact(GraphScratch *s, int64_t n, const double *frac, const double *cell, double cutoff,
                                 ExactCell *x, uint32_t *status) {
    x->reduced = reduce_cell(cell);
    const ReducedCell &r = x->reduced;
    if (!r.valid) {
        *status |= DRUSE_STATUS_SINGULAR;
        return true;
    }
    if (!s->atoms.reserve(9 * n) || !s->positions.reserve(3 * n)) return false;
    x->coordinate = s->atoms.data;
    x->translation = x->coordinate + 3 * n;
    x->offset = x->translation + 3 * n;
    x->relative = s->positions.data;
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
            if (!(__builtin_fabs(t) < 1e9)) *status |= DRUSE_STATUS_SINGULAR;
            x->translation[k * n + i] = t;
        }
    }
    if (*status & DRUSE_STATUS_SINGULAR) return true;

    // a minimum-image offset is within +-1/2 along each axis, so |number_k + offset_k| spacing_k <= cutoff bounds number_k
    int64_t most[3], box = 1;
    for (int k = 0; k < 3; ++k) {
        const double planes = __builtin_floor((cutoff + kCutoffTolerance) / r.spacing[k] + 0.5 + 1e-9);
        if (!(planes < kMaxImages)) {
            *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
            return true;
        }
        most[k] = static_cast<int64_t>(planes);
        box *= 2 * most[k] + 1;
        if (box > 8 * kMaxImages) {
            *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
            return true;
        }
    }
    if (!s->image_numbers.reserve(3 * (box + kWidth)) || !s->image_shifts.reserve(3 * (box + kWidth))) return false;
    const double farthest = cutoff + r.reach + 1e-3, farthest2 = farthest * farthest;
    double *number = s->image_numbers.data;
    int64_t m = 0;
    for (int64_t a = -most[0]; a <= most[0]; ++a)
        for (int64_t b = -most[1]; b <= most[1]; ++b)
            for (int64_t c = -most[2]; c <= most[2]; ++c) {
                const double da = static_cast<double>(a), db = static_cast<double>(b), dc = static_cast<double>(c);
                double length2 = 0.0;
                for (int k = 0; k < 3; ++k) {
                    const double v = da * r.rows[k] + db * r.rows[3 + k] + dc * r.rows[6 + k];
                    length2 += v * v;
                }
                if (!(length2 <= farthest2)) continue;
                number[3 * m] = da, number[3 * m + 1] = db, number[3 * m + 2] = dc;
                ++m;
            }
    if (m > kMaxImages || n * padded(m) > INT32_MAX) {
        *status |= DRUSE_STATUS_TOO_MANY_IMAGES;
        return true;
    }
    x->number = number;
    x->m = m;
    x->m_padded = padded(m);
    x->shift = s->image_shifts.data;
    for (int64_t i = 0; i < x->m_padded; ++i)
        for (int k = 0; k < 3; ++k)
            x->shift[k * x->m_padded + i] =
                i < m ? static_cast<float>(number[3 * i] * r.rows[k] + number[3 * i + 1] * r.rows[3 + k] +
                                           number[3 * i + 2] * r.rows[6 + k])
                      : kFar;
    x->slack = static_cast<float>(8.0 * 6e-8 * (farthest + r.reach));
    return true;
}

// Vectors from atom i to the nearest image of every atom.
static inline void minimum_images(ExactCell *x, int64_t n, int64_t i) {
    const double *rows = x->reduced.rows, *c = x->coordinate;
    for (int64_t j = 0; j < n; ++j) {
        double t[3];
        for (int k = 0; k < 3; ++k) {
            const double difference = c[k * n + j] - c[k * n + i];
            const double nearest = (difference + 6755399441055744.0) - 6755399441055744.0;  // 1.5 * 2^52: rounds
            t[k] = difference - nearest;
            x->offset[k * n + j] = t[k];
        }
        for (int k = 0; k < 3; ++k)
            x->relative[k * n + j] = static_cast<float>(t[0] * rows[k] + t[1] * rows[3 + k] + t[2] * rows[6 + k]);
    }
}

static inline bool exact_target(GraphScratch *s, ExactCell *x, int64_t n, int64_t i,
                                const druse_graph_options *options, int64_t *total, uint32_t *status) {
    const double cutoff = options->cutoff + kCutoffTolerance;
    const float reach = static_cast<float>(cutoff) + x->slack, r2 = reach * reach;
    const int64_t k_wanted = options->max_neighbors, m_padded = x->m_padded;
    minimum_images(x, n, i);
    Candidates c = {};
    for (int64_t j = 0; j < n; ++j) {
        if (!reserve_candidates(s, c.count + m_padded, &c)) return false;
        scan_source(x->shift, m_padded, x->relative[j], x->relative[n + j], x->relative[2 * n + j], 0.0f, 0.0f, 0.0f,
                    r2, static_cast<int32_t>(j * m_padded), &c);
    }
    if (c.dropped > 1) *status |= DRUSE_STATUS_COINCIDENT;

    // what float32 cannot rule out
    const bool limited = c.count > k_wanted;
    const double tolerance = options->shell_tolerance > 0.0 ? options->shell_tolerance : 0.0;
    float bound = r2;
    if (limited) {
        pad_candidates(&c);
        const double d = __builtin_sqrtf(kth_smallest(c.d2, c.count, k_wanted, r2));
        const float widened = static_cast<float>(d + tolerance + 4.0 * static_cast<double>(x->slack));
        bound = widened * widened < r2 ? widened * widened : r2;
    }
    const int64_t spare = kWidth;
    if (!s->chosen.reserve(5 * (c.count + spare)) || !s->chosen_index.reserve(c.count + spare)) return false;
    int32_t *chosen_id = s->chosen_index.data;
    int64_t chosen = 0;
    if (limited) {
        const Vector limit = splat(bound);
        for (int64_t e = 0; e < c.count; e += kWidth) {
            uint32_t inside = lanes(load(c.d2 + e) <= limit);
            for (; inside != 0; inside &= inside - 1) chosen_id[chosen++] = c.id[e + __builtin_ctz(inside)];
        }
    } else {
        chosen = c.count;
        memcpy(chosen_id, c.id, static_cast<size_t>(chosen) * sizeof *chosen_id);
    }

    // ... in float64
    const int64_t stride = c.count + spare;
    double *vx = s->chosen.data, *vy = vx + stride, *vz = vy + stride, *d = vz + stride, *sorted = d + stride;
    const double *rows = x->reduced.rows;
    int64_t j = 0;
    for (int64_t e = 0; e < chosen; ++e) {
        while (chosen_id[e] >= (j + 1) * m_padded) ++j;
        const double *number = x->number + 3 * (chosen_id[e] - j * m_padded);
        const double t0 = x->offset[j] + number[0], t1 = x->offset[n + j] + number[1],
                     t2 = x->offset[2 * n + j] + number[2];
        vx[e] = t0 * rows[0] + t1 * rows[3] + t2 * rows[6];
        vy[e] = t0 * rows[1] + t1 * rows[4] + t2 * rows[7];
        vz[e] = t0 * rows[2] + t1 * rows[5] + t2 * rows[8];
    }
    for (int64_t e = 0; e < chosen; ++e)
        d[e] = __builtin_sqrt((vx[e] * vx[e] + vy[e] * vy[e]) + vz[e] * vz[e]);
    double farthest = cutoff;
    int64_t ties = chosen;
    if (limited && chosen > k_wanted) {
        memcpy(sorted, d, static_cast<size_t>(chosen) * sizeof *sorted);
        const double kth = kth_smallest_f64(sorted, chosen, k_wanted);
        if (kth + tolerance < farthest) farthest = kth + tolerance;
        if (options->shell_tolerance < 0.0) {
            ties = k_wanted;
            for (int64_t e = 0; e < chosen; ++e) ties -= d[e] < kth;
        }
    }

    if (!s->edges.reserve(*total + chosen)) return false;
    s->first_edge[i] = *total;
    const double *t = x->translation;
    j = 0;
    for (int64_t e = 0; e < chosen; ++e) {
        if (!(d[e] <= farthest) || (options->shell_tolerance < 0.0 && d[e] == farthest && ties-- <= 0)) continue;
        while (chosen_id[e] >= (j + 1) * m_padded) ++j;
        const double *number = x->number + 3 * (chosen_id[e] - j * m_padded);
        // whole cells: image number plus what the minimum image took off
        double cells[3];
        for (int k = 0; k < 3; ++k)
            cells[k] = number[k] +
                       __builtin_rint(x->offset[k * n + j] - (x->coordinate[k * n + j] - x->coordinate[k * n + i]));
        EdgeRecord *record = &s->edges[(*total)++];
        record->src = static_cast<int32_t>(j);
        record->dst = static_cast<int32_t>(i);
        for (int k = 0; k < 3; ++k) {
            const double *transform = x->reduced.transform + k;
            record->image[k] = static_cast<int32_t>(
                (t[k * n + j] - t[k * n + i]) +
                (cells[0] * transform[0] + cells[1] * transform[3] + cells[2] * transform[6]));
        }
        const double inverse = -1.0 / d[e];
        record->distance = static_cast<float>(d[e]);
        record->unit[0] = static_cast<float>(vx[e] * inverse);
        record->unit[1] = static_cast<float>(vy[e] * inverse);
        record->unit[2] = static_cast<float>(vz[e] * inverse);
    }
    if (s->first_edge[i] == *total) *status |= DRUSE_STATUS_ISOLATED;
    return true;
}

static inline bool exact_edges(GraphScratch *s, int64_t n, const double *frac, const double *cell,
                               const druse_graph_options *options, int64_t *total, uint32_t *status) {
    ExactCell x = {};
    *total = 0;
    if (!prepare_exact(s, n, frac, cell, options->cutoff, &x, status)) return false;
    if (*status & (DRUSE_STATUS_SINGULAR | DRUSE_STATUS_TOO_MANY_IMAGES)) return true;
    for (int64_t i = 0; i < n; ++i)
        if (!exact_target(s, &x, n, i, options, total, status)) return false;
    s->first_edge[n] = *total;
    return true;
}

// ---- symmetrising ---------------------------------------------------------------------------------------------------

static inline bool is_half_edge(const EdgeRecord &e) {
    if (e.src != e.dst) return e.src < e.dst;
    for (int k = 0; k < 3; ++k)
        if (e.image[k] != 0) return e.image[k] < 0;
    return false;
}

static inline EdgeRecord mirrored(const EdgeRecord &e) {
    return {e.dst, e.src, {-e.image[0], -e.image[1], -e.image[2]}, e.distance, {-e.unit[0], -e.unit[1], -e.unit[2]}};
}

// Does target `e.dst` list this edge? Its list is sorted by source.
static inline bool listed(const GraphScratch *s, const EdgeRecord &e) {
    const EdgeRecord *edges = s->edges.data;
    int64_t low = s->first_edge.data[e.dst];
    const int64_t end = s->first_edge.data[e.dst + 1];
    for (int64_t high = end; low < high;) {
        const int64_t middle = low + (high - low) / 2;
        if (edges[middle].src < e.src)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < end && edges[low].src == e.src; ++low)
        if (edges[low].image[0] == e.image[0] && edges[low].image[1] == e.image[1] && edges[low].image[2] == e.image[2])
            return true;
    return false;
}

static inline bool halve(GraphScratch *s, bool unite, int64_t *total) {
    const int64_t directed = *total;
    if (!s->half_edges.reserve(directed)) return false;
    int64_t count = 0;
    for (int64_t e = 0; e < directed; ++e)
        if (is_half_edge(s->edges[e])) s->half_edges[count++] = s->edges[e];
    if (unite)
        for (int64_t e = 0; e < directed; ++e) {
            if (is_half_edge(s->edges[e])) continue;
            const EdgeRecord mirror = mirrored(s->edges[e]);
            if (!listed(s, mirror)) s->half_edges[count++] = mirror;
        }
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
    // beyond 1e8 a float64 fraction no longer resolves an atom, and image numbers would leave int32
    if (!all_finite(frac, 3 * n, 1e8) || !all_finite(cell, 9, 1e15)) {
        out->status = DRUSE_STATUS_NON_FINITE;
        return true;
    }
    if (!s->first_edge.reserve(n + 1)) return false;
    const bool exact = options->mode == DRUSE_MODE_EXACT;
    if (!(exact ? exact_edges : upstream_edges)(s, n, frac, cell, options, &out->count, &out->status)) return false;
    out->edges = s->edges.data;
    if (options->symmetrise != DRUSE_SYMMETRISE_NONE && out->count > 0) {
        if (!halve(s, options->symmetrise == DRUSE_SYMMETRISE_UNION, &out->count)) return false;
        out->edges = s->half_edges.data;
    }
    return true;
}

}  // namespace DRUSE_ISA
}  // namespace druse
