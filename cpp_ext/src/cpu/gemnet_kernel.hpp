// The score network on a bin of crystals whose features fit a core's cache. Layers that act on the same edges follow one
// another on tiles of rows; between them stand the sums over an atom's edges.
#pragma once

#include "dense_kernel.hpp"
#include "geometry_kernel.hpp"
#include "paths_kernel.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr float kInvSqrt2 = 0.70710678118654752f;
constexpr float kSeries[6] = {0.6931471824645996f,   0.24022647738456726f,   0.055503323674201965f,
                              0.009618437848985195f, 0.0013398926239460707f, 0.00015353319759014994f};

// y sigmoid(sharpness y). 2^t by a polynomial on what rounding leaves of t (error 2e-9), the reciprocal by three steps of
// Newton's method from an integer guess: both the same on every instruction set.
static DRUSE_INLINE Vector silu(Vector y, float sharpness) {
    const Vector one = splat(1.0f);
    const Vector t = clamped(y * (-1.44269504f * sharpness), -115.0f, 115.0f);
    const Vector shifted = t + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const Vector f = t - (shifted - 12582912.0f);
    Vector series = splat(kSeries[5]);
#pragma GCC unroll 5
    for (int k = 4; k >= 0; --k) series = fused(series, f, splat(kSeries[k]));
    series = fused(series, f, one);
    const Mask exponent = reinterpret_cast<Mask>(shifted) << 23;
    const Vector divisor = one + reinterpret_cast<Vector>(reinterpret_cast<Mask>(series) + exponent);
    Vector inverse = reinterpret_cast<Vector>(0x7ef311c7 - reinterpret_cast<Mask>(divisor));
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) inverse = fused(inverse, fused_minus(divisor, inverse, one), inverse);
    return y * inverse;
}

static DRUSE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static DRUSE_INLINE int64_t whole_tiles(int64_t n_rows) { return (n_rows + kTileRows - 1) / kTileRows * kTileRows; }

// A matrix and what follows it.
struct Layer {
    const float *packed;
    float sharpness;
};

// y = silu(x w) on whole tiles of rows, with `skip` (of y's width, nullable) added.
static void activated(int64_t n_rows, int32_t n_in, int32_t n_out, const float *x, const Layer &layer, const float *skip,
                      float *y) {
    const auto zero = [](int64_t, int32_t) __attribute__((always_inline)) { return Vector{}; };
    if (skip == nullptr)
        dense(n_rows, n_in, n_out, x, layer.packed, zero,
              [&](int64_t row, int32_t column, Vector value)
                  __attribute__((always_inline)) { store(y + row * n_out + column, silu(value, layer.sharpness)); });
    else
        dense(n_rows, n_in, n_out, x, layer.packed, zero,
              [&](int64_t row, int32_t column, Vector value) __attribute__((always_inline)) {
                  const int64_t place = row * n_out + column;
                  store(y + place, load(skip + place) + silu(value, layer.sharpness));
              });
}

// y = x w, in rows of whole panels.
static void linear(int64_t n_rows, int32_t n_in, int32_t n_out, const float *x, const float *packed, float *y) {
    const int64_t stride = (n_out + kPanel - 1) / kPanel * kPanel;
    dense(
        n_rows, n_in, n_out, x, packed, [](int64_t, int32_t) __attribute__((always_inline)) { return Vector{}; },
        [&](int64_t row, int32_t column, Vector value)
            __attribute__((always_inline)) { store(y + row * stride + column, value); });
}

struct GemNetRun {
    const druse_gemnet &net;
    const druse_gemnet_batch &batch;
    GemNetScratch *scratch;
    const float *const *weights;  // of the next layer
    const float *sharpness;
    int64_t n_half, n_rows, n_atoms, radial_width, kept_width;
    float *m, *down, *summed, *weighted, *radial, *force, *h, *ends;  // of the whole bin
    float *tile[4];                                                  // [kDenseRows, widest]

    static constexpr int64_t kHalfTile = kDenseRows / 2;

    Layer next() {
        const Layer layer = {*weights++, *sharpness++};
        return layer;
    }

    // Rows of a tile: half edges from `first` on, then their mirrors.
    struct Tile {
        int64_t first, count, rows;
    };
    Tile tile_at(int64_t first) const {
        const int64_t count = least(kHalfTile, n_half - first);
        return {first, count, whole_tiles(2 * count)};
    }
    void take(const Tile &t, const float *from, int64_t width, float *to) const {
        const size_t size = static_cast<size_t>(t.count * width) * sizeof(float);
        memcpy(to, from + t.first * width, size);
        memcpy(to + t.count * width, from + (n_half + t.first) * width, size);
        memset(to + 2 * t.count * width, 0, static_cast<size_t>((t.rows - 2 * t.count) * width) * sizeof(float));
    }
    void give(const Tile &t, const float *from, int64_t width, float *to) const {
        const size_t size = static_cast<size_t>(t.count * width) * sizeof(float);
        memcpy(to + t.first * width, from, size);
        memcpy(to + (n_half + t.first) * width, from + t.count * width, size);
    }
    // The half edge of a row, counted in its tile; a row of padding has any.
    static int64_t half(const Tile &t, int64_t row) {
        return row < t.count ? row : row < 2 * t.count ? row - t.count : 0;
    }
    int64_t source(const Tile &t, int64_t row) const {
        return row < t.count ? batch.src[t.first + row] : batch.dst[t.first + half(t, row)];
    }
    int64_t target(const Tile &t, int64_t row) const {
        return row < t.count ? batch.dst[t.first + row] : batch.src[t.first + half(t, row)];
    }
    int64_t row_of(int32_t edge) const { return edge < batch.mirror ? edge : n_half + edge - batch.mirror; }

    bool begin();
    bool run(float *score, float *logits);
    void radial_gate(const Tile &t, int32_t which, const float *packed, float *wide, float *out) const;
    void residuals(int64_t rows, int32_t width, int32_t count, const Layer *layers, float *x, float *work) const;
    void embed_atoms(const float *elements, const float *levels) const;
    bool sum_triplets(const float *bilinear);
    void sum_atoms(int64_t first, int64_t count, float *out) const;
    void logits_of(const Layer &species, const float *bias, float *logits) const;
};

constexpr int kMostResiduals = 128;

inline bool GemNetRun::begin() {
    n_half = batch.n_edges, n_atoms = batch.n_atoms, n_rows = 2 * n_half;
    const int64_t edge = net.edge, atom = net.atom, padded_atoms = n_atoms + kDenseRows;
    kept_width = 3 * net.rbf + net.cbf * net.n_spherical;
    radial_width = (kept_width + edge + kPanel - 1) / kPanel * kPanel;
    const int64_t species = (net.n_species + kPanel - 1) / kPanel * kPanel;
    const int64_t products = static_cast<int64_t>(net.cbf) * net.triplet;
    const int64_t force_width = (net.rbf + kPanel - 1) / kPanel * kPanel;
    int64_t widest = 0;
    const int64_t widths[] = {radial_width, species,      2 * edge,    atom,    force_width,
                              net.n_radial, net.triplet, net.bilinear, products};
    for (const int64_t width : widths) widest = width > widest ? width : widest;
    const int64_t sizes[] = {n_rows * edge,        n_rows * net.triplet, n_rows * net.bilinear, n_rows * edge,
                             n_half * kept_width,  n_rows * net.rbf,     padded_atoms * atom,   padded_atoms * 2 * edge};
    float **places[] = {&m, &down, &summed, &weighted, &radial, &force, &h, &ends};
    int64_t total = 4 * kDenseRows * widest;
    for (const int64_t size : sizes) total += (size + 15) / 16 * 16;
    if (!scratch->floats.reserve(total + 16) || !scratch->rows.reserve(kDenseRows)) return false;
    float *place = scratch->floats.data;
    place += (64 - reinterpret_cast<uintptr_t>(place) % 64) % 64 / sizeof(float);
    for (int k = 0; k < 8; ++k) {
        *places[k] = place;
        place += (sizes[k] + 15) / 16 * 16;
    }
    for (float *&t : tile) t = place, place += kDenseRows * widest;
    memset(summed, 0, static_cast<size_t>(n_rows * net.bilinear) * sizeof *summed);
    memset(force, 0, static_cast<size_t>(n_rows * net.rbf) * sizeof *force);
    weights = net.weights, sharpness = net.sharpness;
    return true;
}

// out[half edges of the tile, edge]: radial basis, projected to rbf channels, times a matrix.
inline void GemNetRun::radial_gate(const Tile &t, int32_t which, const float *packed, float *wide, float *out) const {
    const int64_t rows = whole_tiles(t.count);
    memset(wide, 0, static_cast<size_t>(rows * net.rbf) * sizeof *wide);
    for (int64_t k = 0; k < t.count; ++k)
        memcpy(wide + k * net.rbf, radial + (t.first + k) * kept_width + which * net.rbf,
               static_cast<size_t>(net.rbf) * sizeof *wide);
    linear(rows, net.rbf, net.edge, wide, packed, out);
}

// x + layer(layer(x)) for each two layers, in place.
inline void GemNetRun::residuals(int64_t rows, int32_t width, int32_t count, const Layer *layers, float *x,
                                 float *work) const {
    for (int32_t k = 0; k < count; ++k) {
        activated(rows, width, width, x, layers[2 * k], nullptr, work);
        activated(rows, width, width, work, layers[2 * k + 1], x, x);
    }
}

inline void GemNetRun::embed_atoms(const float *elements, const float *levels) const {
    for (int64_t n = 0; n < n_atoms; ++n) {
        const int32_t crystal = batch.crystal[n];
        const float *element = elements + (batch.species[n] - 1) * net.atom;
        const float *level = levels + static_cast<int64_t>(batch.level[crystal]) * net.atom;
        const float *latent = batch.latent + static_cast<int64_t>(crystal) * net.atom;
        for (int32_t c = 0; c < net.atom; ++c) h[n * net.atom + c] = element[c] + (latent[c] + level[c]);
    }
    memset(h + n_atoms * net.atom, 0, static_cast<size_t>(kDenseRows * net.atom) * sizeof *h);
}

// summed = the bilinear layer of the triplets' sums; edges of several atoms fill the rows of a tile.
inline bool GemNetRun::sum_triplets(const float *bilinear) {
    const druse_paths paths = {n_atoms,       batch.mirror + n_half, batch.degree_capacity, batch.degree_capacity,
                               batch.in_edge, batch.degree,          batch.in_edge,         batch.degree,
                               nullptr,       nullptr,               batch.unit,            batch.mirror};
    const int64_t channels = net.triplet, n_spherical = net.n_spherical, products = net.cbf * channels;
    int64_t waiting = 0;
    const auto flush = [&] {
        linear(whole_tiles(waiting), static_cast<int32_t>(products), net.bilinear, tile[0], bilinear, tile[1]);
        for (int64_t k = 0; k < waiting; ++k)
            memcpy(summed + static_cast<int64_t>(scratch->rows[k]) * net.bilinear, tile[1] + k * net.bilinear,
                   static_cast<size_t>(net.bilinear) * sizeof(float));
        waiting = 0;
    };
    for (int64_t atom = 0; atom < n_atoms; ++atom) {
        PathBlock block;
        if (!path_block(&paths, atom, net.n_spherical, n_spherical * channels, channels, 0, &scratch->paths, &block))
            return false;
        float *x = block.rest, *sums = x + block.n_sum * channels;  // [n_rows, n_spherical, channels]
        for (int64_t j = 0; j < block.n_sum; ++j)
            memcpy(x + j * channels, down + row_of(block.sum_edge[j]) * channels,
                   static_cast<size_t>(channels) * sizeof *x);
        product({block.n_rows * n_spherical, 1, block.n_sum, block.angles, block.stride, 0, 1, x, sums, net.triplet});
        for (int64_t i = 0; i < block.n_rows; ++i) {
            const int64_t row = row_of(block.row_edge[i]), own = row < n_half ? row : row - n_half;
            product({net.cbf, 1, n_spherical, radial + own * kept_width + 3 * net.rbf, n_spherical, 0, 1,
                     sums + i * n_spherical * channels, tile[0] + waiting * products, net.triplet});
            scratch->rows[waiting++] = static_cast<int32_t>(row);
            if (waiting == kDenseRows) flush();
        }
    }
    if (waiting > 0) {
        memset(tile[0] + waiting * products, 0,
               static_cast<size_t>((whole_tiles(waiting) - waiting) * products) * sizeof(float));
        flush();
    }
    return true;
}

// out[k] = sum of the weighted edges into atom first + k, in the order of the table.
inline void GemNetRun::sum_atoms(int64_t first, int64_t count, float *out) const {
    const int64_t width = net.edge;
    memset(out, 0, static_cast<size_t>(whole_tiles(count) * width) * sizeof *out);
    for (int64_t k = 0; k < count; ++k) {
        const int32_t *edges = batch.in_edge + (first + k) * batch.degree_capacity;
        for (int32_t j = 0; j < batch.degree[first + k]; ++j) {
            const float *row = weighted + row_of(edges[j]) * width;
            for (int64_t c = 0; c < width; ++c) out[k * width + c] += row[c];
        }
    }
}

inline void GemNetRun::logits_of(const Layer &species, const float *bias, float *logits) const {
    const int64_t stride = (net.n_species + kPanel - 1) / kPanel * kPanel;
    for (int64_t first = 0; first < n_atoms; first += kDenseRows) {
        const int64_t count = least(kDenseRows, n_atoms - first);
        linear(whole_tiles(count), net.atom, net.n_species, h + first * net.atom, species.packed, tile[0]);
        for (int64_t k = 0; k < count; ++k)
            for (int32_t s = 0; s < net.n_species; ++s)
                logits[(first + k) * net.n_species + s] = tile[0][k * stride + s] + bias[s];
    }
}

inline bool GemNetRun::run(float *score, float *logits) {
    if (!begin()) return false;
    const int32_t edge = net.edge, atom = net.atom;
    const int64_t force_width = (net.rbf + kPanel - 1) / kPanel * kPanel;
    Layer layers[5][kMostResiduals];  // a phase's chains of residual layers
    const auto chain = [&](int which, int32_t count) {
        for (int32_t k = 0; k < 2 * count; ++k) layers[which][k] = next();
    };

    const Layer radial_layer = next(), elements = next(), levels = next();
    Layer ends_layer = next();
    embed_atoms(elements.packed, levels.packed);
    const auto project_ends = [&] {
        for (int64_t first = 0; first < n_atoms; first += kDenseRows) {
            const int64_t count = least(kDenseRows, n_atoms - first);
            linear(whole_tiles(count), atom, 2 * edge, h + first * atom, ends_layer.packed, ends + first * 2 * edge);
        }
    };
    project_ends();

    Layer head, head_out, ba, gate, down_layer;
    const auto take_head = [&] {
        head = next();
        chain(0, net.n_atom);
        head_out = next();
    };
    const auto take_ba = [&] { ba = next(), gate = next(), down_layer = next(); };

    // the force head on a tile of m, whose values stay
    const auto add_force = [&](const Tile &t, const float *m_tile) {
        activated(t.rows, edge, edge, m_tile, head, nullptr, tile[1]);
        residuals(t.rows, edge, net.n_atom, layers[0], tile[1], tile[2]);
        linear(t.rows, edge, net.rbf, tile[1], head_out.packed, tile[2]);
        for (int64_t row = 0; row < 2 * t.count; ++row) {
            const int64_t at = row < t.count ? t.first + row : n_half + t.first + row - t.count;
            for (int32_t k = 0; k < net.rbf; ++k) force[at * net.rbf + k] += tile[2][row * force_width + k];
        }
    };
    // what an edge gives to the triplets of its target
    const auto give_down = [&](const Tile &t, const float *m_tile) {
        radial_gate(t, 0, gate.packed, tile[1], tile[2]);
        dense(
            t.rows, edge, edge, m_tile, ba.packed,
            [](int64_t, int32_t) __attribute__((always_inline)) { return Vector{}; },
            [&](int64_t row, int32_t column, Vector value) __attribute__((always_inline)) {
                store(tile[1] + row * edge + column,
                      silu(value, ba.sharpness) * load(tile[2] + half(t, row) * edge + column));
            });
        activated(t.rows, edge, net.triplet, tile[1], down_layer, nullptr, tile[2]);
        give(t, tile[2], net.triplet, down);
    };

    take_head();
    if (net.n_blocks > 0) take_ba();
    for (int64_t first = 0; first < n_half; first += kHalfTile) {
        const Tile t = tile_at(first);
        const int64_t half_rows = whole_tiles(t.count);
        memset(tile[1], 0, static_cast<size_t>(half_rows * net.n_radial) * sizeof(float));
        radial_basis(t.count, batch.distance + first, static_cast<float>(net.cutoff), net.n_radial, tile[1]);
        linear(half_rows, net.n_radial, static_cast<int32_t>(kept_width) + edge, tile[1], radial_layer.packed, tile[2]);
        for (int64_t k = 0; k < t.count; ++k)
            memcpy(radial + (first + k) * kept_width, tile[2] + k * radial_width,
                   static_cast<size_t>(kept_width) * sizeof(float));
        for (int64_t row = 0; row < t.rows; ++row) {
            const float *from = ends + source(t, row) * 2 * edge, *to = ends + target(t, row) * 2 * edge + edge;
            const float *own = tile[2] + half(t, row) * radial_width + kept_width;
            for (int32_t c = 0; c < edge; c += kWidth)
                store(tile[0] + row * edge + c, silu(load(from + c) + load(to + c) + load(own + c), 1.0f));
        }
        give(t, tile[0], edge, m);
        add_force(t, tile[0]);
        if (net.n_blocks > 0) give_down(t, tile[0]);
    }

    for (int32_t b = 0; b < net.n_blocks; ++b) {
        const float skip = net.factors[3 * b], to_atoms = net.factors[3 * b + 1], update = net.factors[3 * b + 2];
        const Layer bilinear = next(), ca = next(), up_ca = next(), up_ac = next();
        chain(1, net.n_before_skip);
        chain(2, net.n_after_skip);
        const Layer atom_gate = next(), atom_dense = next();
        chain(3, net.n_atom);
        ends_layer = next();
        const Layer feature = next();
        chain(4, net.n_concat);
        take_head();
        if (b + 1 < net.n_blocks) take_ba();

        if (!sum_triplets(bilinear.packed)) return false;

        for (int64_t first = 0; first < n_half; first += kHalfTile) {
            const Tile t = tile_at(first);
            take(t, m, edge, tile[0]);
            take(t, summed, net.bilinear, tile[3]);
            activated(t.rows, edge, edge, tile[0], ca, nullptr, tile[1]);
            activated(t.rows, net.bilinear, edge, tile[3], up_ca, tile[1], tile[1]);
            activated(t.rows, net.bilinear, edge, tile[3], up_ac, nullptr, tile[2]);
            for (int64_t row = 0; row < 2 * t.count; ++row) {
                const int64_t mirrored = row < t.count ? row + t.count : row - t.count;
                for (int32_t c = 0; c < edge; c += kWidth)
                    store(tile[1] + row * edge + c,
                          load(tile[1] + row * edge + c) + load(tile[2] + mirrored * edge + c));
            }
            residuals(t.rows, edge, net.n_before_skip, layers[1], tile[1], tile[2]);
            for (int64_t k = 0; k < t.rows * edge; k += kWidth)
                store(tile[0] + k, fused(skip, load(tile[1] + k), load(tile[0] + k)));
            residuals(t.rows, edge, net.n_after_skip, layers[2], tile[0], tile[2]);
            give(t, tile[0], edge, m);
            radial_gate(t, 1, atom_gate.packed, tile[1], tile[2]);
            for (int64_t row = 0; row < 2 * t.count; ++row)
                for (int32_t c = 0; c < edge; c += kWidth)
                    store(tile[0] + row * edge + c,
                          load(tile[0] + row * edge + c) * load(tile[2] + half(t, row) * edge + c));
            give(t, tile[0], edge, weighted);
        }

        for (int64_t first = 0; first < n_atoms; first += kDenseRows) {
            const int64_t count = least(kDenseRows, n_atoms - first), rows = whole_tiles(count);
            sum_atoms(first, count, tile[0]);
            activated(rows, edge, atom, tile[0], atom_dense, nullptr, tile[1]);
            residuals(rows, atom, net.n_atom, layers[3], tile[1], tile[2]);
            float *own = h + first * atom;
            for (int64_t k = 0; k < count * atom; k += kWidth)
                store(own + k, fused(to_atoms, load(tile[1] + k), load(own + k) * splat(kInvSqrt2)));
        }
        project_ends();

        for (int64_t first = 0; first < n_half; first += kHalfTile) {
            const Tile t = tile_at(first);
            take(t, m, edge, tile[0]);
            dense(
                t.rows, edge, edge, tile[0], feature.packed,
                [&](int64_t row, int32_t column) __attribute__((always_inline)) {
                    return load(ends + source(t, row) * 2 * edge + column) +
                           load(ends + target(t, row) * 2 * edge + edge + column);
                },
                [&](int64_t row, int32_t column, Vector value)
                    __attribute__((always_inline)) { store(tile[1] + row * edge + column, silu(value, 1.0f)); });
            residuals(t.rows, edge, net.n_concat, layers[4], tile[1], tile[2]);
            for (int64_t k = 0; k < t.rows * edge; k += kWidth)
                store(tile[0] + k, fused(update, load(tile[1] + k), load(tile[0] + k)));
            give(t, tile[0], edge, m);
            add_force(t, tile[0]);
            if (b + 1 < net.n_blocks) give_down(t, tile[0]);
        }
    }

    const Layer species = next(), bias = next();
    logits_of(species, bias.packed, logits);
    if (!scratch->paths.floats.reserve(batch.mirror + n_half)) return false;
    float *along = scratch->paths.floats.data;  // forces of edges, as they are numbered
    for (int64_t row = 0; row < n_rows; ++row) {
        const int64_t own = row < n_half ? row : row - n_half;
        const float *basis = radial + own * kept_width + 2 * net.rbf;
        float sum = 0.0f;
        for (int32_t k = 0; k < net.rbf; ++k) sum += force[row * net.rbf + k] * basis[k];
        along[row < n_half ? row : batch.mirror + own] = sum;
    }
    force_sum(n_atoms, batch.degree_capacity, batch.in_edge, batch.degree, batch.mirror, batch.unit, along, score);
    return true;
}

static bool gemnet(const druse_gemnet &net, const druse_gemnet_batch &batch, GemNetScratch *scratch, float *score,
                   float *logits) {
    if (batch.n_atoms == 0) return true;
    GemNetRun run = {net, batch, scratch, nullptr, nullptr, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr,
                     nullptr, nullptr, nullptr, {}};
    return run.run(score, logits);
}

}  // namespace DRUSE_ISA
}  // namespace druse
