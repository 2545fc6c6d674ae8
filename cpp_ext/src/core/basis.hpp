// The decoder's radial basis and Legendre polynomials (Gasteiger et al., GemNet, NeurIPS 2021; DimeNet's envelope).
#pragma once

#include "elementary.hpp"

namespace druse {

// 1 - 21 d^5 + 35 d^6 - 15 d^7 below 1, else 0: the polynomial envelope with exponent 5.
DRUSE_HD float envelope(float d) {
    const float d2 = d * d;
    const float d5 = d2 * d2 * d;
    const float value = 1.0f + d5 * ((35.0f - 15.0f * d) * d - 21.0f);
    return d < 1.0f ? value : 0.0f;
}

DRUSE_HD float gaussian(float d, float centre, float minus_half_inverse_variance) {
    const float distance = d - centre;
    return exp_f32(minus_half_inverse_variance * distance * distance);
}

// l P_l = (2l - 1) c P_{l-1} - (l - 1) P_{l-2}
DRUSE_HD float legendre_next(int l, float cosine, float previous, float before) {
    const float a = static_cast<float>(2 * l - 1) / static_cast<float>(l);
    const float b = static_cast<float>(l - 1) / static_cast<float>(l);
    return a * (cosine * previous) - b * before;
}

}  // namespace druse
