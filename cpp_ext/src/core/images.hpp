// Which periodic images can matter to the radius graph, and what the float32 scan may decide: shared by the loops of the
// CPU (cpu/graph_kernel.hpp) and of the GPU (core/crystal_graph.hpp). Templates take a number or a vector of them, by value:
// a reference would promise more of its alignment than vectors in memory have.
#pragma once

#include "cell.hpp"
#include "elementary.hpp"

namespace druse {

constexpr double kCutoffTolerance = 1e-6;  // Angstrom: a shell exactly at the cutoff is not split by rounding
constexpr float kCoincident2 = 1e-4f;      // (0.01 Angstrom)^2: such pairs have no edge in CDVAE, nor here
constexpr int64_t kMaxImages = 1 << 20;
constexpr double kLargestFraction = 1e8;  // beyond, a float64 fraction no longer resolves an atom, and images leave int32
constexpr double kLargestCell = 1e15;     // Angstrom
constexpr double kLargestSpan = 1e9;      // given cells to an image: with two atoms' translations, 5e8 each, still int32

template <class Real, class Value>
DRUSE_HD Value combine(Real a, Real b, Real c, Value x, Value y, Value z) {
    return (a * x + b * y) + c * z;
}

template <class Value>
DRUSE_HD Value sum_of_squares(Value x, Value y, Value z) {
    return (x * x + y * y) + z * z;
}

template <class Value>
DRUSE_HD Value nearest_integer(Value x) {
    const double round = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to an integer
    return (x + round) - round;
}

template <class Real>
DRUSE_HD bool all_within(const Real *values, int64_t count, Real bound) {
    bool good = true;
    for (int64_t i = 0; i < count; ++i) good &= __builtin_fabs(values[i]) <= bound;
    return good;
}

// An atom in the reduced cell, wrapped to [0, 1), and the translation in the given cell that took it there; false where
// that leaves int32.
DRUSE_HD bool wrap_atom(const ReducedCell &r, const double *frac, double *coordinate, double *translation) {
    double given[3], whole[3], reduced_whole[3];
    for (int k = 0; k < 3; ++k) {
        whole[k] = __builtin_floor(frac[k]);
        given[k] = frac[k] - whole[k];
    }
    for (int k = 0; k < 3; ++k) {
        const double f = combine(given[0], given[1], given[2], r.inverse_transform[k], r.inverse_transform[3 + k],
                                 r.inverse_transform[6 + k]);
        reduced_whole[k] = __builtin_floor(f);
        coordinate[k] = f - reduced_whole[k];
    }
    bool good = true;
    for (int k = 0; k < 3; ++k) {
        translation[k] = -(whole[k] + combine(reduced_whole[0], reduced_whole[1], reduced_whole[2], r.transform[k],
                                              r.transform[3 + k], r.transform[6 + k]));
        good &= __builtin_fabs(translation[k]) < 5e8;
    }
    return good;
}

// Images -most .. most along each axis; places count them in lexicographic order, so that the negative of image `place` is
// size - 1 - place.
struct ImageBox {
    int32_t most[3];
    int32_t size;  // 0: more than can be searched, or farther in the given cell than int32 can say
};

// A minimum image is within +-1/2 along each axis, so |number + offset| spacing <= radius bounds the number.
DRUSE_HD ImageBox image_box(const ReducedCell &r, double radius) {
    ImageBox box;
    int64_t size = 1;
    for (int k = 0; k < 3; ++k) {
        const double planes = __builtin_floor(radius / r.spacing[k] + 0.5 + 1e-9);
        const int64_t most = planes < static_cast<double>(kMaxImages) ? static_cast<int64_t>(planes) : kMaxImages;
        box.most[k] = static_cast<int32_t>(most);
        if (size > 0) size *= 2 * most + 1;
        if (size > 8 * kMaxImages) size = 0;
    }
    for (int k = 0; k < 3; ++k) {
        double span = 0.0;
        for (int row = 0; row < 3; ++row) span += box.most[row] * __builtin_fabs(r.transform[3 * row + k]);
        if (!(span < kLargestSpan)) size = 0;
    }
    box.size = static_cast<int32_t>(size);
    return box;
}

DRUSE_HD void image_at(const ImageBox &box, int32_t place, int32_t *number) {
    const uint32_t p = static_cast<uint32_t>(place);
    const uint32_t wide = static_cast<uint32_t>(2 * box.most[2] + 1), tall = static_cast<uint32_t>(2 * box.most[1] + 1);
    const uint32_t rest = p / wide, first = rest / tall;
    number[0] = static_cast<int32_t>(first) - box.most[0];
    number[1] = static_cast<int32_t>(rest - first * tall) - box.most[1];
    number[2] = static_cast<int32_t>(p - rest * wide) - box.most[2];
}

// The number of bits that count a crystal's images; -1 where atom and image together leave int32.
DRUSE_HD int image_bits(int64_t n_atoms, int64_t n_images) {
    int bits = 4;  // instruction sets pad images to at most 16
    while ((static_cast<int64_t>(1) << bits) < n_images) ++bits;
    return n_atoms << bits <= INT32_MAX ? bits : -1;
}

// The longest lattice vector that can bring a source at its minimum image within the cutoff of a target.
DRUSE_HD double farthest_image(const ReducedCell &r, double cutoff) { return cutoff + r.reach + 1e-3; }

// A bound on the error of a float32 distance.
DRUSE_HD float distance_error(const ReducedCell &r, double farthest) {
    return static_cast<float>(8.0 * 6e-8 * (farthest + r.reach));
}

// How the K-th distance decides in exact mode. `kth32` is the K-th smallest of the float32 distances.
struct Doubt {
    float bound;            // float32 cannot rule out squared distances up to this
    double sure, excluded;  // distances up to `sure` are in and those beyond `excluded` out, whatever the K-th one is exactly
};

DRUSE_HD Doubt doubt_of(double kth32, double tolerance, float error) {
    const double slack = 2.0 * static_cast<double>(error);
    const float widened = static_cast<float>(kth32 + tolerance + 2.0 * slack);
    Doubt doubt;
    doubt.bound = widened * widened;
    doubt.sure = kth32 + tolerance - slack;
    doubt.excluded = kth32 + tolerance + slack;
    return doubt;
}

// Of an edge and its mirror, the one that is stored as a half edge.
DRUSE_HD bool is_half_edge(int64_t src, int64_t dst, const int32_t *image) {
    if (src != dst) return src < dst;
    if (image[0] != 0) return image[0] < 0;
    if (image[1] != 0) return image[1] < 0;
    return image[2] < 0;
}

}  // namespace druse
