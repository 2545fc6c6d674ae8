// Sums over pairs of edges that meet at an atom, one atom at a time and with its own number of edges: angles, products and
// what is between them stay in a core's cache. Every element is one chain of fused multiply-adds in a fixed order.
#pragma once

#include "../core/basis.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr int kSumRows = 6;
#if defined(__AVX512F__)
constexpr int kSumVectors = 4;  // 24 sums and 4 columns' vectors in 32 registers
#else
constexpr int kSumVectors = 2;  // 12 sums in 16 registers
#endif

// c[r] = sum over o and k of a[r row + o outer + k step] b[o n_inner + k]; rows of b and c have `channels` numbers.
struct Product {
    int64_t n_rows, n_outer, n_inner;
    const float *a;
    int64_t row, outer, step;
    const float *b;
    float *c;
    int32_t channels;
};

template <int kRows, int kVectors>
static DRUSE_INLINE void product_tile(const Product &p, int64_t first, int32_t column) {
    Vector sum[kRows][kVectors] = {};
    const float *b = p.b + column;
    for (int64_t o = 0; o < p.n_outer; ++o) {
        const float *a = p.a + first * p.row + o * p.outer;
        for (int64_t k = 0; k < p.n_inner; ++k, a += p.step, b += p.channels) {
            Vector columns[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kWidth);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sum[r][v] = fused(a[r * p.row], columns[v], sum[r][v]);
        }
    }
    float *c = p.c + first * p.channels + column;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store(c + r * p.channels + v * kWidth, sum[r][v]);
}

template <int kVectors>
static DRUSE_INLINE void product_columns(const Product &p, int32_t column) {
    int64_t row = 0;
    for (; row + kSumRows <= p.n_rows; row += kSumRows) product_tile<kSumRows, kVectors>(p, row, column);
    switch (p.n_rows - row) {
        case 5: return product_tile<5, kVectors>(p, row, column);
        case 4: return product_tile<4, kVectors>(p, row, column);
        case 3: return product_tile<3, kVectors>(p, row, column);
        case 2: return product_tile<2, kVectors>(p, row, column);
        case 1: return product_tile<1, kVectors>(p, row, column);
        default: return;
    }
}

static void product(const Product &p) {
    constexpr int kColumns = kSumVectors * kWidth;
    int32_t column = 0;
    for (; column + kColumns <= p.channels; column += kColumns) product_columns<kSumVectors>(p, column);
    for (; column < p.channels; column += kWidth) product_columns<1>(p, column);
}

// The dense block of an atom.
struct PathBlock {
    const int32_t *row_edge, *sum_edge;
    int64_t n_rows, n_sum, stride;  // stride: n_sum in whole vectors
    float *angles;                  // [n_rows, n_spherical, stride]
    float *rest;                    // working memory behind it
};

static void gather_units(const druse_paths *paths, int64_t count, const int32_t *edge, const int32_t *label, float *xyz,
                         int64_t stride, int32_t *labels) {
    for (int64_t j = 0; j < stride; ++j) {
        float v[3] = {0.0f, 0.0f, 0.0f};
        if (j < count) unit_of(paths->unit, paths->mirror, edge[j], v);
        for (int k = 0; k < 3; ++k) xyz[k * stride + j] = v[k];
        labels[j] = j < count ? (label == nullptr ? edge[j] : label[edge[j]]) : -1;
    }
}

// P_l of the angle between every row and every edge that is summed, 0 where their labels are the same. Behind it in the
// working memory there is room for so many numbers for each row, for each summed edge, and `more`.
static bool path_block(const druse_paths *paths, int64_t atom, int32_t n_spherical, int64_t per_row, int64_t per_sum,
                       int64_t more, PathScratch *scratch, PathBlock *block) {
    const int64_t n_rows = paths->row_degree[atom], n_sum = paths->sum_degree[atom];
    const int64_t stride = (n_sum + 15) / 16 * 16, row_stride = (n_rows + 15) / 16 * 16;
    block->row_edge = paths->row_edge + atom * paths->row_capacity;
    block->sum_edge = paths->sum_edge + atom * paths->sum_capacity;
    block->n_rows = n_rows, block->n_sum = n_sum, block->stride = stride;
    const int64_t of_angles = n_rows * n_spherical * stride;
    if (!scratch->floats.reserve(3 * (stride + row_stride) + of_angles + per_row * n_rows + per_sum * n_sum + more) ||
        !scratch->labels.reserve(stride + row_stride))
        return false;
    float *own = scratch->floats.data, *other = own + 3 * row_stride;
    int32_t *own_label = scratch->labels.data, *other_label = own_label + row_stride;
    block->angles = other + 3 * stride;
    block->rest = block->angles + of_angles;
    gather_units(paths, n_rows, block->row_edge, paths->row_label, own, row_stride, own_label);
    gather_units(paths, n_sum, block->sum_edge, paths->sum_label, other, stride, other_label);
    const float *x = other, *y = x + stride, *z = y + stride;
    for (int64_t i = 0; i < n_rows; ++i) {
        const float xi = own[i], yi = own[row_stride + i], zi = own[2 * row_stride + i];
        float *rows = block->angles + i * n_spherical * stride;
        for (int32_t l = 0; l < n_spherical; ++l) {
            float *row = rows + l * stride;
            const float *previous = row - stride, *before = previous - stride;
            if (l == 0) {
                for (int64_t j = 0; j < stride; ++j) row[j] = other_label[j] != own_label[i] ? 1.0f : 0.0f;
            } else if (l == 1) {
                for (int64_t j = 0; j < stride; ++j) row[j] = previous[j] * ((xi * x[j] + yi * y[j]) + zi * z[j]);
            } else {
                for (int64_t j = 0; j < stride; ++j)
                    row[j] = legendre_next(l, (xi * x[j] + yi * y[j]) + zi * z[j], previous[j], before[j]);
            }
        }
    }
    return true;
}

// ---- DimeNet++ ----

// What edge e's features are multiplied with for degree l: sum over n of spherical[e, l, n] weight[l, n].
static DRUSE_INLINE Vector radial_factor(const PathSum &p, int64_t edge, int32_t l, int32_t column) {
    const float *spherical = p.spherical + (edge * p.n_spherical + l) * p.n_radial;
    const float *weight = p.weight + static_cast<int64_t>(l) * p.n_radial * p.channels + column;
    Vector factor{};
    for (int32_t n = 0; n < p.n_radial; ++n) factor = fused(spherical[n], load(weight + n * p.channels), factor);
    return factor;
}

static bool path_sum(const PathSum &p, int64_t begin, int64_t end, PathScratch *scratch) {
    const int64_t channels = p.channels;
    for (int64_t atom = begin; atom < end; ++atom) {
        PathBlock block;
        if (!path_block(p.paths, atom, p.n_spherical, channels, p.n_spherical * channels, 0, scratch, &block))
            return false;
        float *given = block.rest, *out = given + block.n_sum * p.n_spherical * channels;
        for (int64_t j = 0; j < block.n_sum; ++j) {
            const int64_t edge = block.sum_edge[j];
            for (int32_t l = 0; l < p.n_spherical; ++l)
                for (int32_t c = 0; c < p.channels; c += kWidth)
                    store(given + (l * block.n_sum + j) * channels + c,
                          load(p.x + edge * channels + c) * radial_factor(p, edge, l, c));
        }
        product({block.n_rows, p.n_spherical, block.n_sum, block.angles, p.n_spherical * block.stride, block.stride, 1,
                 given, out, p.channels});
        for (int64_t i = 0; i < block.n_rows; ++i)
            memcpy(p.out + block.row_edge[i] * channels, out + i * channels,
                   static_cast<size_t>(channels) * sizeof *out);
    }
    return true;
}

// of_weight: of these atoms alone, [n_spherical, n_radial, channels], added to.
static bool path_sum_gradient(const PathSum &p, int64_t begin, int64_t end, float *of_weight, PathScratch *scratch) {
    const int64_t channels = p.channels;
    for (int64_t atom = begin; atom < end; ++atom) {
        PathBlock block;
        if (!path_block(p.paths, atom, p.n_spherical, channels, p.n_spherical * channels, 0, scratch, &block))
            return false;
        float *given = block.rest, *pulled = given + block.n_rows * channels;  // [n_spherical, n_sum, channels]
        for (int64_t i = 0; i < block.n_rows; ++i)
            memcpy(given + i * channels, p.given + block.row_edge[i] * channels,
                   static_cast<size_t>(channels) * sizeof *given);
        for (int32_t l = 0; l < p.n_spherical; ++l)
            product({block.n_sum, 1, block.n_rows, block.angles + l * block.stride, 1, 0,
                     p.n_spherical * block.stride, given, pulled + l * block.n_sum * channels, p.channels});
        for (int64_t j = 0; j < block.n_sum; ++j) {
            const int64_t edge = block.sum_edge[j];
            for (int32_t c = 0; c < p.channels; c += kWidth) {
                Vector sum{};
                const Vector x = load(p.x + edge * channels + c);
                for (int32_t l = 0; l < p.n_spherical; ++l) {
                    const Vector pull = load(pulled + (l * block.n_sum + j) * channels + c);
                    sum += pull * radial_factor(p, edge, l, c);
                    const float *spherical = p.spherical + (edge * p.n_spherical + l) * p.n_radial;
                    float *weight = of_weight + static_cast<int64_t>(l) * p.n_radial * channels + c;
                    for (int32_t n = 0; n < p.n_radial; ++n)
                        store(weight + n * channels, fused(spherical[n], pull * x, load(weight + n * channels)));
                }
                store(p.of_x + edge * channels + c, sum);
            }
        }
    }
    return true;
}

// ---- GemNet-T ----

static void gather_rows(const float *x, int64_t channels, int64_t count, const int32_t *edge, float *out) {
    for (int64_t j = 0; j < count; ++j)
        memcpy(out + j * channels, x + edge[j] * channels, static_cast<size_t>(channels) * sizeof *out);
}

static DRUSE_INLINE const float *radial_of(const TripletSum &p, int64_t edge) {
    const int64_t half = p.paths->mirror > 0 && edge >= p.paths->mirror ? edge - p.paths->mirror : edge;
    return p.radial + half * p.n_basis * p.n_spherical;
}

static bool triplet_sum(const TripletSum &p, int64_t begin, int64_t end, PathScratch *scratch) {
    const int64_t channels = p.channels;
    for (int64_t atom = begin; atom < end; ++atom) {
        PathBlock block;
        if (!path_block(p.paths, atom, p.n_spherical, p.n_spherical * channels, channels, 0, scratch, &block))
            return false;
        float *x = block.rest, *sums = x + block.n_sum * channels;  // [n_rows, n_spherical, channels]
        gather_rows(p.x, channels, block.n_sum, block.sum_edge, x);
        product({block.n_rows * p.n_spherical, 1, block.n_sum, block.angles, block.stride, 0, 1, x, sums, p.channels});
        for (int64_t i = 0; i < block.n_rows; ++i) {
            const int64_t edge = block.row_edge[i];
            product({p.n_basis, 1, p.n_spherical, radial_of(p, edge), p.n_spherical, 0, 1,
                     sums + i * p.n_spherical * channels, p.out + edge * p.n_basis * channels, p.channels});
        }
    }
    return true;
}

static bool triplet_sum_gradient(const TripletSum &p, int64_t begin, int64_t end, PathScratch *scratch) {
    const int64_t channels = p.channels, n_spherical = p.n_spherical;
    const int32_t padded = (p.n_spherical + 15) / 16 * 16;
    for (int64_t atom = begin; atom < end; ++atom) {
        PathBlock block;
        if (!path_block(p.paths, atom, p.n_spherical, 2 * n_spherical * channels, 2 * channels,
                        (channels + p.n_basis) * padded, scratch, &block))
            return false;
        float *x = block.rest, *of_x = x + block.n_sum * channels;
        float *sums = of_x + block.n_sum * channels, *of_sums = sums + block.n_rows * n_spherical * channels;
        float *turned = of_sums + block.n_rows * n_spherical * channels;  // [channels, padded]
        float *of_radial = turned + channels * padded;                    // [n_basis, padded]
        gather_rows(p.x, channels, block.n_sum, block.sum_edge, x);
        product({block.n_rows * n_spherical, 1, block.n_sum, block.angles, block.stride, 0, 1, x, sums, p.channels});
        memset(turned, 0, static_cast<size_t>(channels * padded) * sizeof *turned);
        for (int64_t i = 0; i < block.n_rows; ++i) {
            const int64_t edge = block.row_edge[i];
            const float *given = p.given + edge * p.n_basis * channels, *own = sums + i * n_spherical * channels;
            product({n_spherical, 1, p.n_basis, radial_of(p, edge), 1, 0, n_spherical, given,
                     of_sums + i * n_spherical * channels, p.channels});
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t l = 0; l < n_spherical; ++l) turned[c * padded + l] = own[l * channels + c];
            product({p.n_basis, 1, channels, given, channels, 0, 1, turned, of_radial, padded});
            for (int64_t k = 0; k < p.n_basis; ++k)
                memcpy(p.of_radial + (edge * p.n_basis + k) * n_spherical, of_radial + k * padded,
                       static_cast<size_t>(n_spherical) * sizeof *of_radial);
        }
        product({block.n_sum, 1, block.n_rows * n_spherical, block.angles, 1, 0, block.stride, of_sums, of_x,
                 p.channels});
        for (int64_t j = 0; j < block.n_sum; ++j)
            memcpy(p.of_x + block.sum_edge[j] * channels, of_x + j * channels,
                   static_cast<size_t>(channels) * sizeof *of_x);
    }
    return true;
}

}  // namespace DRUSE_ISA
}  // namespace druse
