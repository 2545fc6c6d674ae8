// The few vector operations that the graph needs and compilers do not find by themselves. Each instruction set compiles
// this header in its own namespace (DRUSE_ISA).
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace druse {
namespace DRUSE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));
typedef int32_t Mask __attribute__((vector_size(4 * kWidth)));

static inline Vector load(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline Vector splat(float x) { return x - Vector{}; }

// a b + c with one rounding, on every instruction set.
static inline __attribute__((always_inline)) Vector fused(float a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(
        _mm512_fmadd_ps(_mm512_set1_ps(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Vector>(
        _mm256_fmadd_ps(_mm256_set1_ps(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
    for (int lane = 0; lane < kWidth; ++lane) c[lane] = __builtin_fmaf(a, b[lane], c[lane]);
    return c;
#endif
}

static inline __attribute__((always_inline)) Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                    reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Vector>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                    reinterpret_cast<__m256>(c)));
#else
    for (int lane = 0; lane < kWidth; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
}

// c - a b with one rounding.
static inline __attribute__((always_inline)) Vector fused_minus(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_fnmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                     reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Vector>(_mm256_fnmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                     reinterpret_cast<__m256>(c)));
#else
    return fused(-a, b, c);
#endif
}

// Between low and high; what is no number may become one of them.
static inline __attribute__((always_inline)) Vector clamped(Vector x, float low, float high) {
#if defined(__AVX512F__)
    const __m512 above = _mm512_max_ps(reinterpret_cast<__m512>(x), _mm512_set1_ps(low));
    return reinterpret_cast<Vector>(_mm512_min_ps(above, _mm512_set1_ps(high)));
#elif defined(__AVX__)
    const __m256 above = _mm256_max_ps(reinterpret_cast<__m256>(x), _mm256_set1_ps(low));
    return reinterpret_cast<Vector>(_mm256_min_ps(above, _mm256_set1_ps(high)));
#else
    x = x > splat(low) ? x : splat(low);
    return x < splat(high) ? x : splat(high);
#endif
}

static inline void store(float *p, Vector v) { memcpy(p, &v, sizeof v); }

// Bit l of the result is set where lane l of the mask is.
static inline uint32_t lanes(Mask mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
    uint32_t bits = 0;
    for (int l = 0; l < kWidth; ++l) bits |= static_cast<uint32_t>(mask[l] & 1) << l;
    return bits;
#endif
}

static inline int population(uint32_t bits) {
#if defined(__AVX2__)
    return __builtin_popcount(bits);
#else
    bits -= bits >> 1 & 5u;  // four lanes at most
    return static_cast<int>((bits & 3u) + (bits >> 2));
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For every mask of eight lanes, the chosen lanes first: AVX2 has no compress instruction.
struct CompressTable {
    uint8_t lane[256][8];
    constexpr CompressTable() : lane() {
        for (int mask = 0; mask < 256; ++mask)
            for (int l = 0, n = 0; l < 8; ++l)
                if (mask >> l & 1) lane[mask][n++] = static_cast<uint8_t>(l);
    }
};
constexpr CompressTable kCompress;

static inline __m256i chosen_lanes(uint32_t chosen) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(kCompress.lane[chosen])));
}
#endif

// Appends the chosen lanes of `values` to values_out and first_id + lane to ids_out. Both need kWidth spare places.
static inline int64_t append(uint32_t chosen, Vector values, int32_t first_id, float *values_out, int32_t *ids_out) {
#if defined(__AVX512F__)
    const __mmask16 m = static_cast<__mmask16>(chosen);
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i ids = _mm512_add_epi32(steps, _mm512_set1_epi32(first_id));
    _mm512_storeu_ps(values_out, _mm512_maskz_compress_ps(m, reinterpret_cast<__m512>(values)));
    _mm512_storeu_si512(ids_out, _mm512_maskz_compress_epi32(m, ids));
    return population(chosen);
#elif defined(__AVX2__)
    const __m256i order = chosen_lanes(chosen);
    const __m256i ids = _mm256_add_epi32(order, _mm256_set1_epi32(first_id));
    _mm256_storeu_ps(values_out, _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(values), order));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(ids_out), ids);
    return population(chosen);
#else
    int64_t count = 0;
    float all[kWidth];
    memcpy(all, &values, sizeof all);
    for (; chosen != 0; chosen &= chosen - 1, ++count) {
        const int lane = __builtin_ctz(chosen);
        values_out[count] = all[lane];
        ids_out[count] = first_id + lane;
    }
    return count;
#endif
}

// Appends the chosen ones of the kWidth numbers at `ids` to ids_out, which needs kWidth spare places.
static inline int64_t append_ids(uint32_t chosen, const int32_t *ids, int32_t *ids_out) {
#if defined(__AVX512F__)
    const __m512i all = _mm512_loadu_si512(ids);
    _mm512_storeu_si512(ids_out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(chosen), all));
    return population(chosen);
#elif defined(__AVX2__)
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(ids));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(ids_out), _mm256_permutevar8x32_epi32(all, chosen_lanes(chosen)));
    return population(chosen);
#else
    int64_t count = 0;
    for (; chosen != 0; chosen &= chosen - 1) ids_out[count++] = ids[__builtin_ctz(chosen)];
    return count;
#endif
}

}  // namespace DRUSE_ISA
}  // namespace druse
