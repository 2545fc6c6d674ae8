// Loops of core/philox.hpp and core/updates.hpp in blocks that compilers vectorise.
#pragma once

#include "../core/philox.hpp"
#include "../core/updates.hpp"

namespace druse {
namespace DRUSE_ISA {

static void normal(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t first_block,
                   int64_t n_rows, int32_t width, float *out) {
    constexpr int kChunk = 64;
    float value[4][kChunk];
    const int64_t blocks_per_row = (width + 3) / 4, n_blocks = n_rows * blocks_per_row;
    for (int64_t first = 0; first < n_blocks; first += kChunk) {
        const int length = n_blocks - first < kChunk ? static_cast<int>(n_blocks - first) : kChunk;
        for (int b = 0; b < length; ++b) {
            const Normals n = normal_block(seed, crystal_id, step, purpose, first_block + static_cast<uint32_t>(first) + b);
            value[0][b] = n.n[0];
            value[1][b] = n.n[1];
            value[2][b] = n.n[2];
            value[3][b] = n.n[3];
        }
        if (width % 4 == 0) {
            for (int b = 0; b < length; ++b)
                for (int lane = 0; lane < 4; ++lane) out[4 * (first + b) + lane] = value[lane][b];
        } else {
            for (int b = 0; b < length; ++b) {
                const int64_t row = (first + b) / blocks_per_row;
                const int32_t column = static_cast<int32_t>(4 * ((first + b) % blocks_per_row));
                for (int lane = 0; lane < 4 && column + lane < width; ++lane)
                    out[row * width + column + lane] = value[lane][b];
            }
        }
    }
}

static void ddpm(int64_t count, float scale, float eps_scale, float noise_scale, const float *eps, const float *noise,
                 const float *z, float *out) {
    for (int64_t i = 0; i < count; ++i) out[i] = ddpm_value(z[i], eps[i], noise[i], scale, eps_scale, noise_scale);
}

}  // namespace DRUSE_ISA
}  // namespace druse
