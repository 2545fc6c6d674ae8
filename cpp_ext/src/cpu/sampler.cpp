// Noise and the sampler updates of a batch.
#include <atomic>

#include "../core/cell.hpp"
#include "../core/philox.hpp"
#include "../core/updates.hpp"
#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace druse {
namespace cpu {
namespace {

template <class Real>
bool all_finite(const Real *values, int64_t count) {
    Real residue = 0;
    for (int64_t i = 0; i < count; ++i) residue += values[i] * Real(0);  // NaN where a value is NaN or infinite
    return residue == Real(0);
}

Buffer<float> &noise_of_thread() {
    static thread_local Buffer<float> buffer;
    return buffer;
}

int64_t first_row(const int64_t *offsets, int64_t b) { return offsets == nullptr ? b : offsets[b]; }

// Crystals a task: enough numbers to be worth a thread's while.
int64_t grain(int64_t rows_total, int64_t n_crystals, int64_t width) {
    const int64_t per_crystal = n_crystals > 0 ? (rows_total * width) / n_crystals + 1 : 1;
    return 8192 / per_crystal + 1;
}

}  // namespace

int32_t normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out) {
    const Kernels &kernel = kernels(exec->isa);
    const int64_t per_task = grain(first_row(offsets, n_crystals), n_crystals, width);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t row = first_row(offsets, b);
            kernel.normal(key->seed, key->crystal_ids[b], key->step, key->purpose, first_row(offsets, b + 1) - row,
                          width, out + row * width);
        }
    });
    return DRUSE_OK;
}

int32_t uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                int32_t width, double *out) {
    const int64_t blocks_per_row = (width + 3) / 4;
    const int64_t per_task = grain(first_row(offsets, n_crystals), n_crystals, width);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            for (int64_t row = first_row(offsets, b), r = 0; row < first_row(offsets, b + 1); ++row, ++r)
                for (int32_t column = 0; column < width; column += 4) {
                    const uint32_t block = static_cast<uint32_t>(r * blocks_per_row + column / 4);
                    const Words words = noise_block(key->seed, key->crystal_ids[b], key->step, key->purpose, block);
                    for (int lane = 0; lane < 4 && column + lane < width; ++lane)
                        out[row * width + column + lane] = uniform_of(words.w[lane]);
                }
    });
    return DRUSE_OK;
}

int32_t langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                 const double *cells, double drift, double diffusion, const float *score, const float *noise,
                 int32_t n_species, const float *logits, const uint8_t *allowed, double *frac, int32_t *species,
                 uint32_t *status) {
    const Kernels &kernel = kernels(exec->isa);
    std::atomic<bool> out_of_memory{false};
    const int64_t per_task = grain(offsets[n_crystals], n_crystals, logits == nullptr ? 32 : n_species);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        Buffer<float> &drawn = noise_of_thread();
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = offsets[b], n = offsets[b + 1] - first;
            const float *draws = noise == nullptr ? nullptr : noise + 3 * first;
            if (!all_finite(cells + 9 * b, 9) || !all_finite(frac + 3 * first, 3 * n) ||
                !all_finite(score + 3 * first, 3 * n) || (draws != nullptr && !all_finite(draws, 3 * n)) ||
                (logits != nullptr && !all_finite(logits + first * n_species, n * n_species))) {
                status[b] |= DRUSE_STATUS_NON_FINITE;
                continue;
            }
            if (is_flat(cells + 9 * b)) {
                status[b] |= DRUSE_STATUS_SINGULAR;
                continue;
            }
            double inverse[9];
            invert(cells + 9 * b, inverse);
            if (draws == nullptr) {
                if (!drawn.reserve(3 * n)) {
                    out_of_memory.store(true);
                    continue;
                }
                kernel.normal(key->seed, key->crystal_ids[b], key->step, key->purpose, n, 3, drawn.data);
                draws = drawn.data;
            }
            for (int64_t i = 0; i < n; ++i) {
                langevin_atom(inverse, drift, diffusion, score + 3 * (first + i), draws + 3 * i, frac + 3 * (first + i));
                if (logits == nullptr) continue;
                const int32_t chosen = argmax_species(n_species, logits + (first + i) * n_species,
                                                      allowed == nullptr ? nullptr : allowed + b * n_species);
                if (chosen > 0) species[first + i] = chosen;
            }
        }
    });
    return out_of_memory.load() ? DRUSE_ERROR_MEMORY : DRUSE_OK;
}

int32_t ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width, double scale,
             double eps_scale, double noise_scale, const float *eps, const float *noise, float *z, uint32_t *status) {
    const Kernels &kernel = kernels(exec->isa);
    std::atomic<bool> out_of_memory{false};
    parallel_ranges(exec->n_threads, n_crystals, grain(n_crystals, n_crystals, width), [&](int64_t begin, int64_t end) {
        Buffer<float> &drawn = noise_of_thread();
        if (noise == nullptr && !drawn.reserve(width)) {
            out_of_memory.store(true);
            return;
        }
        for (int64_t b = begin; b < end; ++b) {
            if (!all_finite(eps + b * width, width) || !all_finite(z + b * width, width) ||
                (noise != nullptr && !all_finite(noise + b * width, width))) {
                status[b] |= DRUSE_STATUS_NON_FINITE;
                continue;
            }
            const float *draws = noise == nullptr ? drawn.data : noise + b * width;
            if (noise == nullptr) kernel.normal(key->seed, key->crystal_ids[b], key->step, key->purpose, 1, width, drawn.data);
            kernel.ddpm(width, static_cast<float>(scale), static_cast<float>(eps_scale), static_cast<float>(noise_scale),
                        eps + b * width, draws, z + b * width);
        }
    });
    return out_of_memory.load() ? DRUSE_ERROR_MEMORY : DRUSE_OK;
}

}  // namespace cpu
}  // namespace druse
