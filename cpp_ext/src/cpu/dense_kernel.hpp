// Products of rows with packed matrices, and the prior's network, whose activations never leave a core's cache.
//
// Every element of a product is one chain of fused multiply-adds in the order of the inner index, whatever the tiles. So a
// row's bytes depend on nothing but the row: not on the batch, the thread or the instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace druse {
namespace DRUSE_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;  // 24 sums, 2 columns' vectors and a broadcast in 32 registers
#else
constexpr int kTileRows = 6, kTileVectors = 2;  // 12 sums in 16 registers
#endif
static_assert(kDenseRows % kTileRows == 0 && kPanel % (kTileVectors * kWidth) == 0, "tiles fill blocks and panels");

// finish(row, column, start(row, column) + x w) for whole tiles of rows and vectors of columns, n_out being in whole panels.
// x has the rows of whole tiles, n_in apart.
template <class Start, class Finish>
static DRUSE_INLINE void dense(int64_t n_rows, int32_t n_in, int32_t n_out, const float *x, const float *packed,
                               const Start &start, const Finish &finish) {
    constexpr int kColumns = kTileVectors * kWidth;
    const int64_t stride = n_in;
    for (int32_t column = 0; column < n_out; column += kColumns) {
        const float *panel = packed + static_cast<int64_t>(column / kPanel) * kPanel * n_in + column % kPanel;
        for (int64_t row = 0; row < n_rows; row += kTileRows) {
            Vector sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) sum[r][v] = start(row + r, column + v * kWidth);
            // every third row has a pointer: x86 addresses the two between by one register
            const float *own[kTileRows / 3];
            for (int r = 0; r < kTileRows / 3; ++r) own[r] = x + (row + 3 * r) * stride;
            const float *w = panel;
            for (int64_t k = 0; k < stride; ++k, w += kPanel) {
                __builtin_prefetch(w + 8 * kPanel);  // from the level-2 cache: a tenth of the time
                __builtin_prefetch(w + 8 * kPanel + 16);
                Vector columns[kTileVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) columns[v] = load(w + v * kWidth);
#pragma GCC unroll 16
                for (int r = 0; r < kTileRows; ++r) {
                    const float value = own[r / 3][r % 3 * stride];
#pragma GCC unroll 4
                    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = fused(value, columns[v], sum[r][v]);
                }
#pragma GCC unroll 4
                for (int r = 0; r < kTileRows / 3; ++r) ++own[r];
            }
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) finish(row + r, column + v * kWidth, sum[r][v]);
        }
    }
}

// y = x w + (terms + step), then max(y, 0) and + skip where wanted. x, y and skip have whole tiles of rows, of the widths
// n_in, n_out and n_out; terms has n_rows rows of the given stride.
struct DenseLayer {
    int64_t n_rows;
    int32_t n_in, n_out;
    const float *x, *packed, *terms;
    int64_t terms_stride;
    const float *step, *skip;
    bool relu;
    float *y;
};

static void dense(const DenseLayer &layer) {
    dense(
        layer.n_rows, layer.n_in, layer.n_out, layer.x, layer.packed,
        [&](int64_t row, int32_t column) __attribute__((always_inline)) {
            const int64_t own = row < layer.n_rows ? row : layer.n_rows - 1;
            return load(layer.terms + own * layer.terms_stride + column) + load(layer.step + column);
        },
        [&](int64_t row, int32_t column, Vector value) __attribute__((always_inline)) {
            if (layer.relu) value = value < Vector{} ? Vector{} : value;  // NaN stays NaN
            if (layer.skip != nullptr) value += load(layer.skip + row * layer.n_out + column);
            store(layer.y + row * layer.n_out + column, value);
        });
}

// Up to kDenseRows rows: z and eps [kDenseRows, latent], terms [n_rows, total]. `work` has room for the activations.
static void residual_mlp(const druse_residual_mlp *net, int64_t n_rows, const float *z, const float *terms,
                         const float *step, float *work, float *eps) {
    const int32_t n_down = net->n_layers / 2 - 1;
    int32_t total = 0, widest = net->latent;
    for (int32_t i = 0; i < net->n_layers; ++i) {
        total += net->widths[i];
        if (net->widths[i] > widest) widest = net->widths[i];
    }
    const float *inputs[kMostLayers] = {z};  // of the layers on the way down: what is added on the way up
    const float *x = z;
    float *next = work + 2 * kDenseRows * widest;  // the way down is kept, the way up takes two places in turns
    int32_t n_in = net->latent, offset = 0;
    for (int32_t i = 0; i < net->n_layers; ++i) {
        const bool last = i == net->n_layers - 1;
        const int32_t n_out = net->widths[i];
        const float *skip = i >= n_down && !last ? inputs[2 * n_down - i] : nullptr;
        float *y = last ? eps : i < n_down ? next : work + (i % 2) * kDenseRows * widest;
        dense({n_rows, n_in, n_out, x, net->weights[i], terms + offset, total, step + offset, skip, !last, y});
        if (i < n_down) {
            inputs[i + 1] = y;
            next += kDenseRows * n_out;
        }
        x = y, n_in = n_out, offset += n_out;
    }
}

}  // namespace DRUSE_ISA
}  // namespace druse
