// Loops of core/philox.hpp and core/updates.hpp in blocks that compilers vectorise. Philox itself they do not vectorise well
// on AVX-512 (they take 64-bit products, three times the work), so there it is written out.
#pragma once

#include "../core/philox.hpp"
#include "../core/updates.hpp"
#include "simd.hpp"

namespace druse {
namespace DRUSE_ISA {

constexpr int kChunk = 64;  // blocks at a time

#if defined(__AVX512F__)
static inline void products(__m512i a, uint32_t b, __m512i *high, __m512i *low) {
    const __m512i factor = _mm512_set1_epi64(b);
    const __m512i even = _mm512_mul_epu32(a, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

// Sixteen blocks from `block` on; words[k] has their k-th words.
static inline void sixteen_blocks(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t block,
                                  uint32_t *const words[4]) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i blocks = _mm512_add_epi32(steps, _mm512_set1_epi32(static_cast<int>(block)));
    __m512i w0 = _mm512_set1_epi32(static_cast<int>(crystal_id)), w1 = _mm512_set1_epi32(static_cast<int>(crystal_id >> 32));
    __m512i w2 = _mm512_set1_epi32(static_cast<int>(step));
    __m512i w3 = _mm512_or_si512(_mm512_set1_epi32(static_cast<int>(purpose << 24)), blocks);
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        __m512i high0, low0, high2, low2;
        products(w0, 0xD2511F53u, &high0, &low0);
        products(w2, 0xCD9E8D57u, &high2, &low2);
        w0 = _mm512_xor_si512(_mm512_xor_si512(high2, w1), _mm512_set1_epi32(static_cast<int>(key0)));
        w2 = _mm512_xor_si512(_mm512_xor_si512(high0, w3), _mm512_set1_epi32(static_cast<int>(key1)));
        w1 = low2;
        w3 = low0;
    }
    _mm512_storeu_si512(words[0], w0);
    _mm512_storeu_si512(words[1], w1);
    _mm512_storeu_si512(words[2], w2);
    _mm512_storeu_si512(words[3], w3);
}

// Four rows of sixteen to sixteen rows of four.
static inline void interleave(const float *const value[4], float *out) {
    const __m512 v0 = _mm512_loadu_ps(value[0]), v1 = _mm512_loadu_ps(value[1]);
    const __m512 v2 = _mm512_loadu_ps(value[2]), v3 = _mm512_loadu_ps(value[3]);
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(v0, v1)), high01 = _mm512_castps_pd(_mm512_unpackhi_ps(v0, v1));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(v2, v3)), high23 = _mm512_castps_pd(_mm512_unpackhi_ps(v2, v3));
    const __m512 r0 = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)), r1 = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    const __m512 r2 = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    const __m512 r3 = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    const __m512 a = _mm512_shuffle_f32x4(r0, r1, 0x44), b = _mm512_shuffle_f32x4(r2, r3, 0x44);
    const __m512 c = _mm512_shuffle_f32x4(r0, r1, 0xEE), d = _mm512_shuffle_f32x4(r2, r3, 0xEE);
    _mm512_storeu_ps(out, _mm512_shuffle_f32x4(a, b, 0x88));
    _mm512_storeu_ps(out + 16, _mm512_shuffle_f32x4(a, b, 0xDD));
    _mm512_storeu_ps(out + 32, _mm512_shuffle_f32x4(c, d, 0x88));
    _mm512_storeu_ps(out + 48, _mm512_shuffle_f32x4(c, d, 0xDD));
}
#endif

// kChunk blocks, whether or not all are wanted.
static void chunk_of_words(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t first,
                           uint32_t word[4][kChunk]) {
#if defined(__AVX512F__)
    for (int b = 0; b < kChunk; b += 16) {
        uint32_t *const words[4] = {word[0] + b, word[1] + b, word[2] + b, word[3] + b};
        sixteen_blocks(seed, crystal_id, step, purpose, first + static_cast<uint32_t>(b), words);
    }
#else
    for (int b = 0; b < kChunk; ++b) {
        const Words words = noise_block(seed, crystal_id, step, purpose, first + static_cast<uint32_t>(b));
        for (int k = 0; k < 4; ++k) word[k][b] = words.w[k];
    }
#endif
}

static void normal(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t first_block,
                   int64_t n_rows, int32_t width, float *out) {
    uint32_t word[4][kChunk];
    float value[4][kChunk];
    const int64_t blocks_per_row = (width + 3) / 4, n_blocks = n_rows * blocks_per_row;
    for (int64_t first = 0; first < n_blocks; first += kChunk) {
        const int length = n_blocks - first < kChunk ? static_cast<int>(n_blocks - first) : kChunk;
        chunk_of_words(seed, crystal_id, step, purpose, first_block + static_cast<uint32_t>(first), word);
        for (int b = 0; b < kChunk; ++b) normal_pair(word[0][b], word[1][b], &value[0][b], &value[1][b]);
        for (int b = 0; b < kChunk; ++b) normal_pair(word[2][b], word[3][b], &value[2][b], &value[3][b]);
        if (width % 4 == 0) {
            int b = 0;
#if defined(__AVX512F__)
            for (; b + 16 <= length; b += 16) {
                const float *const values[4] = {value[0] + b, value[1] + b, value[2] + b, value[3] + b};
                interleave(values, out + 4 * (first + b));
            }
#endif
            for (; b < length; ++b)
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
