// Noise and sampler updates: a thread block for each crystal, so that no count has to be known on the host.
#include "../core/cell.hpp"
#include "../core/philox.hpp"
#include "../core/updates.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 128;

struct Key {
    uint64_t seed;
    uint32_t purpose, step;
    const uint64_t *crystal_ids;
    const uint32_t *step_at;
};

Key key_of(const druse_noise_key *key) {
    if (key == nullptr) return Key{0, 0, 0, nullptr, nullptr};
    return Key{key->seed, key->purpose, key->step, key->crystal_ids, key->step_at};
}

__device__ uint32_t step_of(const Key &key) { return key.step_at == nullptr ? key.step : *key.step_at; }

__device__ int64_t first_row(const int64_t *offsets, int64_t b) { return offsets == nullptr ? b : offsets[b]; }

__global__ void normal_kernel(Key key, const int64_t *offsets, int32_t width, float *out) {
    const int64_t b = blockIdx.x, row0 = first_row(offsets, b);
    const int64_t blocks_per_row = (width + 3) / 4, n_blocks = (first_row(offsets, b + 1) - row0) * blocks_per_row;
    for (int64_t k = threadIdx.x; k < n_blocks; k += blockDim.x) {
        const Normals drawn =
            normal_block(key.seed, key.crystal_ids[b], step_of(key), key.purpose, static_cast<uint32_t>(k));
        const int64_t row = row0 + k / blocks_per_row, column = 4 * (k % blocks_per_row);
        for (int lane = 0; lane < 4 && column + lane < width; ++lane) out[row * width + column + lane] = drawn.n[lane];
    }
}

// Numbers of one word each, or added to what is there.
template <class Number, Number (*of)(uint32_t), bool kAdd = false>
__global__ void word_kernel(Key key, const int64_t *offsets, int32_t width, Number *out) {
    const int64_t b = blockIdx.x, row0 = first_row(offsets, b);
    const int64_t blocks_per_row = (width + 3) / 4, n_blocks = (first_row(offsets, b + 1) - row0) * blocks_per_row;
    for (int64_t k = threadIdx.x; k < n_blocks; k += blockDim.x) {
        const Words words = noise_block(key.seed, key.crystal_ids[b], step_of(key), key.purpose, static_cast<uint32_t>(k));
        const int64_t row = row0 + k / blocks_per_row, column = 4 * (k % blocks_per_row);
        for (int lane = 0; lane < 4 && column + lane < width; ++lane) {
            Number &place = out[row * width + column + lane];
            place = kAdd ? place + of(words.w[lane]) : of(words.w[lane]);
        }
    }
}

template <class Real>
__device__ bool all_finite(const Real *values, int64_t count) {  // of a block's share
    bool good = true;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) good &= static_cast<bool>(isfinite(values[i]));
    return good;
}

// 1 + the index of the largest allowed logit, by a warp; 0 where none is allowed.
__device__ int32_t warp_argmax(int32_t n_species, const float *logits, const uint8_t *allowed) {
    const int32_t none = n_species;  // beyond every index
    float best = -INFINITY;
    int32_t index = none;
    for (int32_t s = static_cast<int32_t>(threadIdx.x & 31u); s < n_species; s += 32)
        if ((allowed == nullptr || allowed[s] != 0) && (index == none || logits[s] > best)) best = logits[s], index = s;
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, step);
        const int32_t other_index = __shfl_xor_sync(0xffffffffu, index, step);
        if (beats(other, other_index, best, index)) best = other, index = other_index;
    }
    return index == none ? 0 : index + 1;
}

// Two passes: a crystal of which one atom arrives nowhere keeps its whole state. A thread's first atom is computed once.
__global__ void __launch_bounds__(kThreads)
    langevin_kernel(Key key, const int64_t *offsets, const double *cells, double drift, double diffusion,
                    const double *move_at, const float *score, const float *noise, int32_t n_species, const float *logits,
                    const uint8_t *allowed, double *frac, int32_t *species, uint32_t *status) {
    const int64_t b = blockIdx.x, first = offsets[b], n = offsets[b + 1] - first;
    const double *cell = cells + 9 * b;
    if (move_at != nullptr) {
        drift = move_at[0];
        diffusion = move_at[1];
    }
    bool good = all_finite(cell, 9) && all_finite(frac + 3 * first, 3 * n) && all_finite(score + 3 * first, 3 * n);
    if (noise != nullptr) good = good && all_finite(noise + 3 * first, 3 * n);
    if (logits != nullptr) good = good && all_finite(logits + first * n_species, n * n_species);
    if (__syncthreads_and(good) == 0) {
        if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_NON_FINITE;
        return;
    }
    if (is_flat(cell)) {
        if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_SINGULAR;
        return;
    }
    double inverse[9], kept[3];
    invert(cell, inverse);
    const auto move = [&](int64_t i, double *moved) {
        Normals drawn;
        if (noise == nullptr) {
            drawn = normal_block(key.seed, key.crystal_ids[b], step_of(key), key.purpose, static_cast<uint32_t>(i));
        } else {
            for (int k = 0; k < 3; ++k) drawn.n[k] = noise[3 * (first + i) + k];
        }
        return langevin_atom(inverse, drift, diffusion, score + 3 * (first + i), drawn.n, frac + 3 * (first + i), moved);
    };
    const auto settle = [&](int64_t i, const double *moved) {
        for (int k = 0; k < 3; ++k) frac[3 * (first + i) + k] = wrap(moved[k]);
    };
    bool arrives = true;
    if (threadIdx.x < n) arrives = move(threadIdx.x, kept);
    for (int64_t i = threadIdx.x + blockDim.x; i < n; i += blockDim.x) {
        double moved[3];
        arrives &= move(i, moved);
    }
    if (__syncthreads_and(arrives) == 0) {
        if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_NON_FINITE;
        return;
    }
    if (threadIdx.x < n) settle(threadIdx.x, kept);
    for (int64_t i = threadIdx.x + blockDim.x; i < n; i += blockDim.x) {
        double moved[3];
        move(i, moved);
        settle(i, moved);
    }
    if (logits == nullptr) return;
    for (int64_t i = threadIdx.x >> 5; i < n; i += kThreads / 32) {
        const int32_t chosen =
            warp_argmax(n_species, logits + (first + i) * n_species, allowed == nullptr ? nullptr : allowed + b * n_species);
        if (chosen > 0 && (threadIdx.x & 31u) == 0) species[first + i] = chosen;
    }
}

__global__ void ddpm_kernel(Key key, int32_t width, float scale, float eps_scale, float noise_scale, const float *eps,
                            const float *noise, float *z, uint32_t *status) {
    const int64_t b = blockIdx.x, row = b * width;
    bool good = all_finite(eps + row, width) && all_finite(z + row, width);
    if (noise != nullptr) good = good && all_finite(noise + row, width);
    if (__syncthreads_and(good) == 0) {
        if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_NON_FINITE;
        return;
    }
    for (int pass = 0; pass < 2; ++pass) {
        bool lost = false;
        for (int32_t k = threadIdx.x; 4 * k < width; k += blockDim.x) {
            Normals drawn;
            if (noise == nullptr)
                drawn = normal_block(key.seed, key.crystal_ids[b], step_of(key), key.purpose, static_cast<uint32_t>(k));
            for (int lane = 0; lane < 4 && 4 * k + lane < width; ++lane) {
                const int64_t i = row + 4 * k + lane;
                const float draw = noise == nullptr ? drawn.n[lane] : noise[i];
                const float next = ddpm_value(z[i], eps[i], draw, scale, eps_scale, noise_scale);
                lost |= !isfinite(next);
                if (pass == 1) z[i] = next;
            }
        }
        if (pass == 0 && __syncthreads_or(lost) != 0) {
            if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_NON_FINITE;
            return;
        }
    }
}

}  // namespace

int32_t normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out) {
    if (n_crystals == 0) return DRUSE_OK;
    normal_kernel<<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(key_of(key), offsets, width, out);
    return launched();
}

int32_t uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                int32_t width, double *out) {
    if (n_crystals == 0) return DRUSE_OK;
    word_kernel<double, uniform_of>
        <<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(key_of(key), offsets, width, out);
    return launched();
}

int32_t gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out) {
    if (n_crystals == 0) return DRUSE_OK;
    word_kernel<float, gumbel_of>
        <<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(key_of(key), offsets, width, out);
    return launched();
}

int32_t add_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                   int32_t width, float *values) {
    if (n_crystals == 0) return DRUSE_OK;
    word_kernel<float, gumbel_of, true>
        <<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(key_of(key), offsets, width, values);
    return launched();
}

int32_t langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                 const double *cells, double drift, double diffusion, const double *move_at, const float *score,
                 const float *noise, int32_t n_species, const float *logits, const uint8_t *allowed, double *frac,
                 int32_t *species, uint32_t *status) {
    if (n_crystals == 0) return DRUSE_OK;
    langevin_kernel<<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(
        key_of(key), offsets, cells, drift, diffusion, move_at, score, noise, n_species, logits, allowed, frac, species,
        status);
    return launched();
}

int32_t ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width, double scale,
             double eps_scale, double noise_scale, const float *eps, const float *noise, float *z, uint32_t *status) {
    if (n_crystals == 0) return DRUSE_OK;
    ddpm_kernel<<<static_cast<unsigned>(n_crystals), kThreads, 0, stream_of(exec)>>>(
        key_of(key), width, static_cast<float>(scale), static_cast<float>(eps_scale), static_cast<float>(noise_scale),
        eps, noise, z, status);
    return launched();
}

}  // namespace cuda
}  // namespace druse
