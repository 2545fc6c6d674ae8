// One atom's Langevin update and one number's DDPM update.
#pragma once

#include "host_device.hpp"

namespace druse {

// x - floor(x) in [0, 1): tiny negative numbers would round up to 1, and -0.0 stays out of the state.
DRUSE_HD double wrap(double x) {
    const double fraction = x - __builtin_floor(x);
    return fraction < 1.0 && fraction > 0.0 ? fraction : 0.0;
}

// Inverse of a 3x3 matrix by its adjugate; returns the determinant (the inverse is junk where that is 0).
DRUSE_HD double invert(const double *m, double *inverse) {
    const double c0 = m[4] * m[8] - m[5] * m[7];
    const double c1 = m[5] * m[6] - m[3] * m[8];
    const double c2 = m[3] * m[7] - m[4] * m[6];
    const double determinant = m[0] * c0 + m[1] * c1 + m[2] * c2;
    const double scale = 1.0 / determinant;
    inverse[0] = c0 * scale;
    inverse[1] = (m[2] * m[7] - m[1] * m[8]) * scale;
    inverse[2] = (m[1] * m[5] - m[2] * m[4]) * scale;
    inverse[3] = c1 * scale;
    inverse[4] = (m[0] * m[8] - m[2] * m[6]) * scale;
    inverse[5] = (m[2] * m[3] - m[0] * m[5]) * scale;
    inverse[6] = c2 * scale;
    inverse[7] = (m[1] * m[6] - m[0] * m[7]) * scale;
    inverse[8] = (m[0] * m[4] - m[1] * m[3]) * scale;
    return determinant;
}

// frac + (drift score + diffusion noise) cell^-1, in float64, not yet wrapped. False where that leaves the 1e8 cells within
// which a float64 fraction resolves an atom, or is not a number.
DRUSE_HD bool langevin_atom(const double *inverse, double drift, double diffusion, const float *score,
                            const float *noise, const double *frac, double *moved) {
    const double dx = drift * static_cast<double>(score[0]) + diffusion * static_cast<double>(noise[0]);
    const double dy = drift * static_cast<double>(score[1]) + diffusion * static_cast<double>(noise[1]);
    const double dz = drift * static_cast<double>(score[2]) + diffusion * static_cast<double>(noise[2]);
    bool good = true;
    for (int k = 0; k < 3; ++k) {
        moved[k] = frac[k] + (dx * inverse[k] + dy * inverse[3 + k] + dz * inverse[6 + k]);
        good &= __builtin_fabs(moved[k]) <= 1e8;
    }
    return good;
}

// Of two logits, the one that a search from the first on would choose.
DRUSE_HD bool beats(float logit, int32_t index, float other, int32_t other_index) {
    return logit > other || (logit == other && index < other_index);
}

// 1 + the index of the largest allowed logit, the first of equals; 0 where none is allowed.
DRUSE_HD int32_t argmax_species(int32_t n_species, const float *logits, const uint8_t *allowed) {
    int32_t best = -1;
    for (int32_t s = 0; s < n_species; ++s) {
        if (allowed != nullptr && allowed[s] == 0) continue;
        if (best < 0 || logits[s] > logits[best]) best = s;
    }
    return best + 1;
}

// eq. 4, in float32
DRUSE_HD float ddpm_value(float z, float eps, float noise, float scale, float eps_scale, float noise_scale) {
    return scale * (z - eps_scale * eps) + noise_scale * noise;
}

}  // namespace druse
