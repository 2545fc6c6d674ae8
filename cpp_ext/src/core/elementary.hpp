// log, exp, sin and cos in float32 from +, -, *, / and bit operations only, so that every compiler, instruction set and
// GPU gives the same bits, and loops over them vectorise. Truncated Taylor series after argument reduction; the
// remainder is below 1e-8 of the value in each.
#pragma once

#include "host_device.hpp"

namespace druse {

DRUSE_HD float float_of_bits(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } word;
    word.u = bits;
    return word.f;
}

DRUSE_HD uint32_t bits_of_float(float value) {
    union {
        uint32_t u;
        float f;
    } word;
    word.f = value;
    return word.u;
}

// ln(x) for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh(s), s = (m - 1) / (m + 1).
DRUSE_HD float log_f32(float x) {
    const uint32_t bits = bits_of_float(x) - 0x3f3504f3u;  // offset of sqrt(1/2)
    const int32_t exponent = static_cast<int32_t>(bits) >> 23;
    const float m = float_of_bits((bits & 0x007fffffu) + 0x3f3504f3u);
    const float s = (m - 1.0f) / (m + 1.0f);
    const float s2 = s * s;
    const float series = ((s2 * (2.0f / 9.0f) + 2.0f / 7.0f) * s2 + 2.0f / 5.0f) * s2 + 2.0f / 3.0f;
    const float e = static_cast<float>(exponent);
    const float ln_m = 2.0f * s + s * s2 * series;
    return e * 0.693145751953125f + (e * 1.42860677e-6f + ln_m);  // ln 2 in two parts, the first exact in 12 bits
}

// exp(x) for x <= 0; 0 below -87.
DRUSE_HD float exp_f32(float x) {
    const float clamped = x > -87.0f ? x : -87.0f;
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const float n = shifted - 12582912.0f;
    const float r = (clamped - n * 0.693145751953125f) - n * 1.42860677e-6f;
    const float series =
        ((((((r * (1.0f / 5040.0f) + 1.0f / 720.0f) * r + 1.0f / 120.0f) * r + 1.0f / 24.0f) * r + 1.0f / 6.0f) * r +
          0.5f) *
             r +
         1.0f) *
            r +
        1.0f;
    const int32_t exponent = static_cast<int32_t>(n) + 127;
    const float power = float_of_bits(static_cast<uint32_t>(exponent) << 23);
    return x > -87.0f ? series * power : 0.0f;
}

// cos and sin of 2 pi turn / 2^32. The reduction to |angle| <= pi / 4 is exact, in integers.
DRUSE_HD void cos_sin_turn(uint32_t turn, float *cosine, float *sine) {
    const uint32_t quadrant = (turn + 0x20000000u) >> 30;
    const float angle = static_cast<float>(static_cast<int32_t>(turn - (quadrant << 30))) * 1.46291808e-9f;  // 2 pi / 2^32
    const float a2 = angle * angle;
    const float s = angle + angle * a2 *
                                (((a2 * (1.0f / 362880.0f) - 1.0f / 5040.0f) * a2 + 1.0f / 120.0f) * a2 - 1.0f / 6.0f);
    const float c = 1.0f + a2 * ((((a2 * (-1.0f / 3628800.0f) + 1.0f / 40320.0f) * a2 - 1.0f / 720.0f) * a2 +
                                  1.0f / 24.0f) *
                                     a2 -
                                 0.5f);
    const bool swap = (quadrant & 1u) != 0;
    const float x = swap ? s : c;
    const float y = swap ? c : s;
    *cosine = quadrant == 1u || quadrant == 2u ? -x : x;
    *sine = quadrant >= 2u ? -y : y;
}

}  // namespace druse
