// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "elementary.hpp"

namespace druse {

struct Words {
    uint32_t w[4];
};

DRUSE_HD uint32_t high_product(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

DRUSE_HD Words philox(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        Words next;  // high and low words apart: compilers then find the vector instruction for each
        next.w[0] = high_product(0xCD9E8D57u, counter.w[2]) ^ counter.w[1] ^ key0;
        next.w[1] = 0xCD9E8D57u * counter.w[2];
        next.w[2] = high_product(0xD2511F53u, counter.w[0]) ^ counter.w[3] ^ key1;
        next.w[3] = 0xD2511F53u * counter.w[0];
        counter = next;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Block `block` of a crystal's draws: see druse_noise_key in druse.h.
DRUSE_HD Words noise_block(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t block) {
    Words counter;
    counter.w[0] = static_cast<uint32_t>(crystal_id);
    counter.w[1] = static_cast<uint32_t>(crystal_id >> 32);
    counter.w[2] = step;
    counter.w[3] = purpose << 24 | block;
    return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// A word as a uniform number in (0, 1): the middle of its interval, exact in float64.
DRUSE_HD double uniform_of(uint32_t word) { return (static_cast<double>(word) + 0.5) * (1.0 / 4294967296.0); }

// A word as a standard Gumbel number, -log(-log(1 - v)) with v uniform: -3.14 to 22.9. Near 0 and near 1, v and 1 - v keep
// their digits.
DRUSE_HD float gumbel_of(uint32_t word) {
    const float v = static_cast<float>(word) * 2.32830644e-10f + 1.16415322e-10f;
    const float rest = static_cast<float>(~word) * 2.32830644e-10f + 1.16415322e-10f;
    const float series = v + v * v * (0.5f + v * (1.0f / 3.0f + v * 0.25f));
    const float exponential = v < 0.015625f ? series : -log_f32(rest);
    return -log_f32(exponential);
}

// Box-Muller: two words to two standard normal numbers. |value| < 6.8; u rounds to 1 for words above 2^32 - 129.
DRUSE_HD void normal_pair(uint32_t word0, uint32_t word1, float *first, float *second) {
    const float u = static_cast<float>(word0) * 2.32830644e-10f + 1.16415322e-10f;
    const float squared = -2.0f * log_f32(u);
    const float radius = __builtin_sqrtf(squared > 0.0f ? squared : 0.0f);
    float cosine, sine;
    cos_sin_turn(word1, &cosine, &sine);
    *first = radius * cosine;
    *second = radius * sine;
}

struct Normals {
    float n[4];
};

DRUSE_HD Normals normal_block(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t block) {
    const Words words = noise_block(seed, crystal_id, step, purpose, block);
    Normals normals;
    normal_pair(words.w[0], words.w[1], &normals.n[0], &normals.n[1]);
    normal_pair(words.w[2], words.w[3], &normals.n[2], &normals.n[3]);
    return normals;
}

}  // namespace druse
