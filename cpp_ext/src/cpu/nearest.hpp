// For one target: which (source, image) pairs lie within a radius, and the K-th smallest of their squared distances.
#pragma once

#include "../core/images.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr float kFar = __builtin_inff();  // shift of a padding image
constexpr int kFew = 16;               // candidates left in the bracket when bisection ends

static inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

// Squared distances of one target's candidates and their ids, (source << image bits) + image, in scan order.
struct Candidates {
    float *d2;
    int32_t *id;
    int64_t count;
    int64_t dropped;  // pairs that coincide, the atom with itself among them
};

static inline bool reserve_candidates(GraphScratch *s, int64_t wanted, Candidates *c) {
    if (!s->candidate_d2.reserve(wanted + 2 * kWidth) || !s->candidate_id.reserve(wanted + 2 * kWidth)) return false;
    c->d2 = s->candidate_d2.data;
    c->id = s->candidate_id.data;
    return true;
}

// Appends the images of a source at (x, y, z) within r2 of the target at (cx, cy, cz). As CDVAE does, the image's shift is
// added to the source first.
static inline void scan_source(const float *shifts, int64_t m_padded, float x, float y, float z, float cx, float cy,
                               float cz, float r2, int32_t first_id, Candidates *out) {
    const Vector vx = splat(x), vy = splat(y), vz = splat(z), vcx = splat(cx), vcy = splat(cy), vcz = splat(cz);
    const Vector limit = splat(r2), least = splat(kCoincident2);
    int64_t count = out->count;
    float *d2_out = out->d2;
    int32_t *id_out = out->id;
    uint32_t dropped = 0;
    for (int64_t m = 0; m < m_padded; m += kWidth) {
        const Vector dx = vcx - (vx + load(shifts + m));
        const Vector dy = vcy - (vy + load(shifts + m_padded + m));
        const Vector dz = vcz - (vz + load(shifts + 2 * m_padded + m));
        const Vector d2 = sum_of_squares(dx, dy, dz);
        const uint32_t within = lanes(d2 <= limit), distinct = lanes(d2 > least);
        dropped += static_cast<uint32_t>(population(within & ~distinct));
        count += append(within & distinct, d2, first_id + static_cast<int32_t>(m), d2_out + count, id_out + count);
    }
    out->count = count;
    out->dropped += dropped;
}

// Makes the vector operations below safe at the end of the list.
static inline void pad_candidates(Candidates *c) {
    for (int l = 0; l < kWidth; ++l) c->d2[c->count + l] = __builtin_inff();
}

static inline int64_t count_up_to(const Candidates &c, float bound) {
    const Vector limit = splat(bound);
    int64_t total = 0;
    for (int64_t i = 0; i < c.count; i += kWidth) total += population(lanes(load(c.d2 + i) <= limit));
    return total;
}

// The ids of the candidates below `bound` and, in scan order, of the first `spare` at it; ids_out needs c.count + kWidth
// places.
static inline int64_t ids_up_to(const Candidates &c, float bound, int64_t spare, int32_t *ids_out) {
    const Vector limit = splat(bound);
    int64_t total = 0;
    for (int64_t i = 0; i < c.count; i += kWidth) {
        const Vector v = load(c.d2 + i);
        uint32_t equal = lanes(v == limit);
        if (equal != 0) {
            while (population(equal) > spare) equal ^= 1u << (31 - __builtin_clz(equal));
            spare -= population(equal);
        }
        total += append_ids(lanes(v < limit) | equal, c.id + i, ids_out + total);
    }
    return total;
}

// The K-th smallest squared distance of more than K, none above `largest`. Bisects the bits of the floats, guided by the
// counts, until few are left in the bracket (or all in it are equal), and ranks those.
static inline float kth_smallest(const Candidates &c, int64_t k, float largest) {
    uint32_t low = bits_of_float(kCoincident2), high = bits_of_float(largest);  // count(low) < k <= count(high)
    int64_t below = 0, up_to = c.count;
    for (int round = 0; up_to - below > kFew && high - low > 1; ++round) {
        uint32_t middle = low + (high - low) / 2;
        if (round % 2 == 0) {  // as if squared distances were spread evenly over the bracket
            const float a = float_of_bits(low), b = float_of_bits(high);
            const float share = (static_cast<float>(k - below) + 2.0f) / (static_cast<float>(up_to - below) + 4.0f);
            const uint32_t guess = bits_of_float(a + (b - a) * share);
            if (guess > low && guess < high) middle = guess;
        }
        const int64_t counted = count_up_to(c, float_of_bits(middle));
        if (counted < k) {
            low = middle;
            below = counted;
        } else {
            high = middle;
            up_to = counted;
        }
    }
    if (high - low <= 1) return float_of_bits(high);

    float few[kFew + kWidth];
    int32_t unused[kFew + kWidth];
    for (int i = 0; i < kFew + kWidth; ++i) few[i] = __builtin_inff();
    const Vector floor = splat(float_of_bits(low)), ceiling = splat(float_of_bits(high));
    int64_t n = 0;
    for (int64_t i = 0; i < c.count; i += kWidth) {
        const Vector v = load(c.d2 + i);
        n += append(lanes((v > floor) & (v <= ceiling)), v, 0, few + n, unused);
    }
    for (int64_t l = n; l < padded(n); ++l) few[l] = __builtin_inff();
    const int64_t rank = k - below;
    for (int64_t i = 0; i < n; ++i) {
        const Vector value = splat(few[i]);
        int64_t less = 0, not_more = 0;
        for (int64_t l = 0; l < n; l += kWidth) {
            const Vector v = load(few + l);
            less += population(lanes(v < value));
            not_more += population(lanes(v <= value));
        }
        if (less < rank && rank <= not_more) return few[i];
    }
    return float_of_bits(high);
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

}  // namespace DRUSE_ISA
}  // namespace druse
