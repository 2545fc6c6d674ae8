// Noise and sampler updates: a thread block for each crystal, so that no count has to be known on the host.
#include "../core/cell.hpp"
#include "../core/philox.hpp"
#include "../core/updates.hpp"
#include "launch.cuh"

namespace druse {
namespace cuda {
namespace {

constexpr int kThreads = 64;

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
__device__ bool any_not_finite(const Real *values, int64_t count) {
    bool bad = false;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) bad |= !isfinite(values[i]);
    return __syncthreads_or(bad) != 0;
}

__global__ void langevin_kernel(Key key, const int64_t *offsets, const double *cells, double drift, double diffusion,
                                const double *move_at, const float *score, const float *noise, int32_t n_species, const float *logits,
                                const uint8_t *allowed, double *frac, int32_t *species, uint32_t *status) {
    const int64_t b = blockIdx.x, first = offsets[b], n = offsets[b + 1] - first;
    if (move_at != nullptr) {
        drift = move_at[0];
        diffusion = move_at[1];
    }
    bool troubled = any_not_finite(cells + 9 * b, 9);
    troubled |= any_not_finite(frac + 3 * first, 3 * n);
    troubled |= any_not_finite(score + 3 * first, 3 * n);
    if (noise != nullptr) troubled |= any_not_finite(noise + 3 * first, 3 * n);
    if (logits != nullptr) troubled |= any_not_finite(logits + first * n_species, n * n_species);
    if (troubled || is_flat(cells + 9 * b)) {
        if (threadIdx.x == 0) status[b] |= troubled ? DRUSE_STATUS_NON_FINITE : DRUSE_STATUS_SINGULAR;
        return;
    }
    double inverse[9];
    invert(cells + 9 * b, inverse);
    // two passes: a crystal of which one atom arrives nowhere keeps its whole state
    for (int pass = 0; pass < 2; ++pass) {
        bool lost = false;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            Normals drawn;
            if (noise == nullptr) {
                drawn = normal_block(key.seed, key.crystal_ids[b], step_of(key), key.purpose, static_cast<uint32_t>(i));
            } else {
                for (int k = 0; k < 3; ++k) drawn.n[k] = noise[3 * (first + i) + k];
            }
            double *place = frac + 3 * (first + i), moved[3];
            lost |= !langevin_atom(inverse, drift, diffusion, score + 3 * (first + i), drawn.n, place, moved);
            for (int k = 0; k < 3 && pass == 1; ++k) place[k] = wrap(moved[k]);
        }
        if (pass == 0 && __syncthreads_or(lost) != 0) {
            if (threadIdx.x == 0) status[b] |= DRUSE_STATUS_NON_FINITE;
            return;
        }
    }
    for (int64_t i = threadIdx.x; i < n && logits != nullptr; i += blockDim.x) {
        const int32_t chosen = argmax_species(n_species, logits + (first + i) * n_species,
                                              allowed == nullptr ? nullptr : allowed + b * n_species);
        if (chosen > 0) species[first + i] = chosen;
    }
}

__global__ void ddpm_kernel(Key key, int32_t width, float scale, float eps_scale, float noise_scale, const float *eps,
                            const float *noise, float *z, uint32_t *status) {
    const int64_t b = blockIdx.x, row = b * width;
    bool troubled = any_not_finite(eps + row, width);
    troubled |= any_not_finite(z + row, width);
    if (noise != nullptr) troubled |= any_not_finite(noise + row, width);
    if (troubled) {
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
