// The decoder's radial basis and Legendre polynomials (Gasteiger et al., GemNet, NeurIPS 2021; DimeNet's envelope).
#pragma once

#include "elementary.hpp"

namespace druse {

// 1 - 21 d^5 + 35 d^6 - 15 d^7 below 1, else 0: the polynomial envelope with exponent 5, by its factors, which do not
// cancel near the cutoff.
DRUSE_HD float envelope(float d) {
    const float rest = 1.0f - d;
    const float value = (rest * rest * rest) * ((((15.0f * d + 10.0f) * d + 6.0f) * d + 3.0f) * d + 1.0f);
    return d < 1.0f ? value : 0.0f;
}

DRUSE_HD float gaussian(float d, float centre, float minus_half_inverse_variance) {
    const float distance = d - centre;
    return exp_f32(minus_half_inverse_variance * distance * distance);
}

// The unit vector of a directed edge; the mirror of edge e is e + mirror, and mirror is 0 where all edges are stored.
DRUSE_HD void unit_of(const float *unit, int64_t mirror, int64_t edge, float *v) {
    const bool flip = mirror > 0 && edge >= mirror;
    const float *from = unit + 3 * (flip ? edge - mirror : edge);
    for (int k = 0; k < 3; ++k) v[k] = flip ? -from[k] : from[k];
}

// l P_l = (2l - 1) c P_{l-1} - (l - 1) P_{l-2}
DRUSE_HD float legendre_next(int l, float cosine, float previous, float before) {
    const float a = static_cast<float>(2 * l - 1) / static_cast<float>(l);
    const float b = static_cast<float>(l - 1) / static_cast<float>(l);
    return a * (cosine * previous) - b * before;
}

}  // namespace druse
