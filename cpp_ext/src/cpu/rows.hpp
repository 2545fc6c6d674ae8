// Updates of one row, that batches and chains share.
#pragma once

#include "kernels.hpp"

namespace druse {
namespace cpu {

constexpr int kPortion = 256;  // atoms, or numbers of a latent, whose noise is drawn at a time; a multiple of four

// Integers, for a sum of floats would be one long chain of additions.
inline bool all_finite(const float *values, int64_t count) {
    uint32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        found |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    }
    return found == 0;
}

inline bool all_finite(const double *values, int64_t count) {
    uint64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t bits;
        memcpy(&bits, values + i, sizeof bits);
        found |= (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u ? 1u : 0u;
    }
    return found == 0;
}

// One reverse step of the DDPM on a latent; its status bits. A latent that would not be finite keeps its old value.
// Draws in portions on the stack, so that no update can run out of memory half-way.
inline uint32_t ddpm_row(const Kernels &kernel, const druse_noise_key &key, uint64_t crystal_id, int32_t width,
                         float scale, float eps_scale, float noise_scale, const float *eps, const float *noise,
                         float *z) {
    bool good = all_finite(eps, width) && all_finite(z, width) && (noise == nullptr || all_finite(noise, width));
    for (int pass = 0; pass < 2 && good; ++pass)
        for (int32_t start = 0; start < width && good; start += kPortion) {
            const int32_t count = width - start < kPortion ? width - start : kPortion;
            float drawn[kPortion], next[kPortion];
            const float *draws = noise == nullptr ? drawn : noise + start;
            if (noise == nullptr && noise_scale == 0.0f)
                memset(drawn, 0, sizeof drawn);
            else if (noise == nullptr)
                kernel.normal(key.seed, crystal_id, key.step, key.purpose, static_cast<uint32_t>(start / 4), 1, count,
                              drawn);
            kernel.ddpm(count, scale, eps_scale, noise_scale, eps + start, draws, z + start, next);
            if (width <= kPortion) pass = 1;  // one portion holds it all: no need to ask first
            good &= all_finite(next, count);
            if (pass == 1 && good) memcpy(z + start, next, static_cast<size_t>(count) * sizeof *z);
        }
    return good ? 0u : static_cast<uint32_t>(DRUSE_STATUS_NON_FINITE);
}

}  // namespace cpu
}  // namespace druse
