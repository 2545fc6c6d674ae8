// Noise and the sampler updates of a batch.
#include "../core/cell.hpp"
#include "../core/philox.hpp"
#include "../core/updates.hpp"
#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace druse {
namespace cpu {
namespace {

uint32_t step_of(const druse_noise_key *key) { return key->step_at == nullptr ? key->step : *key->step_at; }

int64_t first_row(const int64_t *offsets, int64_t b) { return offsets == nullptr ? b : offsets[b]; }

// Crystals a task: enough numbers to be worth a thread's while.
int64_t grain(int64_t rows_total, int64_t n_crystals, int64_t width) {
    const int64_t per_crystal = n_crystals > 0 ? (rows_total * width) / n_crystals + 1 : 1;
    return 8192 / per_crystal + 1;
}

// Numbers of one word each.
template <class Number, class Write>
int32_t each_word(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                  int32_t width, Number *out, const Write &write) {
    const int64_t blocks_per_row = (width + 3) / 4;
    const uint32_t step = step_of(key);
    const int64_t per_task = grain(first_row(offsets, n_crystals), n_crystals, width);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            for (int64_t row = first_row(offsets, b), r = 0; row < first_row(offsets, b + 1); ++row, ++r)
                for (int32_t column = 0; column < width; column += 4) {
                    const uint32_t block = static_cast<uint32_t>(r * blocks_per_row + column / 4);
                    const Words words = noise_block(key->seed, key->crystal_ids[b], step, key->purpose, block);
                    for (int lane = 0; lane < 4 && column + lane < width; ++lane)
                        write(out[row * width + column + lane], words.w[lane]);
                }
    });
    return DRUSE_OK;
}

}  // namespace

int32_t normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out) {
    const Kernels &kernel = kernels(exec->isa);
    const int64_t per_task = grain(first_row(offsets, n_crystals), n_crystals, width);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t row = first_row(offsets, b);
            kernel.normal(key->seed, key->crystal_ids[b], step_of(key), key->purpose, 0, first_row(offsets, b + 1) - row,
                          width, out + row * width);
        }
    });
    return DRUSE_OK;
}

int32_t uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                int32_t width, double *out) {
    return each_word(exec, key, n_crystals, offsets, width, out,
                     [](double &value, uint32_t word) { value = uniform_of(word); });
}

int32_t gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out) {
    return each_word(exec, key, n_crystals, offsets, width, out,
                     [](float &value, uint32_t word) { value = gumbel_of(word); });
}

int32_t add_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                   int32_t width, float *values) {
    return each_word(exec, key, n_crystals, offsets, width, values,
                     [](float &value, uint32_t word) { value += gumbel_of(word); });
}

// Draws in portions on the stack, so that no update can run out of memory half-way. Two passes: the first only asks whether
// every atom arrives somewhere, since a crystal that does not keeps its whole state.
int32_t langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                 const double *cells, double drift, double diffusion, const double *move_at, const float *score,
                 const float *noise, int32_t n_species, const float *logits, const uint8_t *allowed, double *frac,
                 int32_t *species, uint32_t *status) {
    const Kernels &kernel = kernels(exec->isa);
    const uint32_t step = noise == nullptr ? step_of(key) : 0;
    if (move_at != nullptr) {
        drift = move_at[0];
        diffusion = move_at[1];
    }
    const int64_t per_task = grain(offsets[n_crystals], n_crystals, logits == nullptr ? 32 : n_species);
    parallel_ranges(exec->n_threads, n_crystals, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = offsets[b], n = offsets[b + 1] - first;
            const float *given = noise == nullptr ? nullptr : noise + 3 * first;
            bool good = all_finite(cells + 9 * b, 9) && all_finite(frac + 3 * first, 3 * n) &&
                        all_finite(score + 3 * first, 3 * n) && (given == nullptr || all_finite(given, 3 * n)) &&
                        (logits == nullptr || all_finite(logits + first * n_species, n * n_species));
            if (good && is_flat(cells + 9 * b)) {
                status[b] |= DRUSE_STATUS_SINGULAR;
                continue;
            }
            double inverse[9];
            invert(cells + 9 * b, inverse);
            for (int pass = 0; pass < 2 && good; ++pass)
                for (int64_t start = 0; start < n && good; start += kPortion) {
                    const int64_t count = n - start < kPortion ? n - start : kPortion;
                    float drawn[3 * kPortion];
                    const float *draws = given == nullptr ? drawn : given + 3 * start;
                    if (given == nullptr)
                        kernel.normal(key->seed, key->crystal_ids[b], step, key->purpose,
                                      static_cast<uint32_t>(start), count, 3, drawn);
                    for (int64_t i = 0; i < count; ++i) {
                        double *place = frac + 3 * (first + start + i), moved[3];
                        good &= langevin_atom(inverse, drift, diffusion, score + 3 * (first + start + i),
                                              draws + 3 * i, place, moved);
                        for (int k = 0; k < 3 && pass == 1; ++k) place[k] = wrap(moved[k]);
                    }
                }
            if (!good) {
                status[b] |= DRUSE_STATUS_NON_FINITE;
                continue;
            }
            for (int64_t i = first; i < first + n && logits != nullptr; ++i) {
                const int32_t chosen = argmax_species(n_species, logits + i * n_species,
                                                      allowed == nullptr ? nullptr : allowed + b * n_species);
                if (chosen > 0) species[i] = chosen;
            }
        }
    });
    return DRUSE_OK;
}

int32_t ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width, double scale,
             double eps_scale, double noise_scale, const float *eps, const float *noise, float *z, uint32_t *status) {
    const Kernels &kernel = kernels(exec->isa);
    druse_noise_key given = key != nullptr ? *key : druse_noise_key{};
    if (key != nullptr) given.step = step_of(key);
    parallel_ranges(exec->n_threads, n_crystals, grain(n_crystals, n_crystals, width), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            status[b] |= ddpm_row(kernel, given, given.crystal_ids == nullptr ? 0 : given.crystal_ids[b], width,
                                  static_cast<float>(scale), static_cast<float>(eps_scale),
                                  static_cast<float>(noise_scale), eps + b * width,
                                  noise == nullptr ? nullptr : noise + b * width, z + b * width);
    });
    return DRUSE_OK;
}

}  // namespace cpu
}  // namespace druse
