// The prior's network, and its reverse process, in blocks of rows that stay with one core from the first step to the last.
#include <atomic>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace druse {
namespace cpu {
namespace {

struct Block {
    Buffer<float> z, eps, work;

    // Rows beyond those in use are zero, so that no arithmetic on them is slow.
    bool begin(const druse_residual_mlp *net, int64_t n_rows, const float *from) {
        int64_t widest = net->latent, down = 0;
        for (int32_t i = 0; i < net->n_layers; ++i) {
            if (net->widths[i] > widest) widest = net->widths[i];
            if (i < net->n_layers / 2 - 1) down += net->widths[i];
        }
        const int64_t size = kDenseRows * static_cast<int64_t>(net->latent);
        if (!z.reserve(size) || !eps.reserve(size) || !work.reserve(kDenseRows * (2 * widest + down))) return false;
        memcpy(z.data, from, static_cast<size_t>(n_rows * net->latent) * sizeof(float));
        memset(z.data + n_rows * net->latent, 0, static_cast<size_t>(size - n_rows * net->latent) * sizeof(float));
        return true;
    }
};

// function(block, first, count) for blocks of rows, each with the thread's own buffers and the rows of z in them.
template <class Function>
int32_t by_blocks(const druse_exec *exec, const druse_residual_mlp *net, int64_t n_rows, const float *z,
                  const Function &function) {
    std::atomic<bool> out_of_memory{false};
    parallel_ranges(exec->n_threads, n_rows, kDenseRows, [&](int64_t begin, int64_t end) {
        static thread_local Block block;
        if (block.begin(net, end - begin, z + begin * net->latent))
            function(block, begin, end - begin);
        else
            out_of_memory.store(true);
    });
    return out_of_memory.load() ? DRUSE_ERROR_MEMORY : DRUSE_OK;
}

int64_t total_width(const druse_residual_mlp *net) {
    int64_t total = 0;
    for (int32_t i = 0; i < net->n_layers; ++i) total += net->widths[i];
    return total;
}

}  // namespace

int32_t pack(int32_t n_in, int32_t n_out, const float *matrix, float *packed) {
    for (int32_t first = 0; first < n_out; first += kPanel)
        for (int32_t k = 0; k < n_in; ++k, packed += kPanel)
            for (int32_t c = 0; c < kPanel; ++c)
                packed[c] = first + c < n_out ? matrix[static_cast<int64_t>(k) * n_out + first + c] : 0.0f;
    return DRUSE_OK;
}

int32_t prior_eps(const druse_exec *exec, const druse_residual_mlp *net, int64_t n_rows, int32_t step, const float *z,
                  const float *terms, float *eps) {
    const Kernels &kernel = kernels(exec->isa);
    const int64_t total = total_width(net);
    return by_blocks(exec, net, n_rows, z, [&](Block &block, int64_t first, int64_t count) {
        kernel.residual_mlp(net, count, block.z.data, terms + first * total, net->steps + step * total,
                            block.work.data, block.eps.data);
        memcpy(eps + first * net->latent, block.eps.data,
               static_cast<size_t>(count * net->latent) * sizeof(float));
    });
}

int32_t prior_chain(const druse_exec *exec, const druse_residual_mlp *net, const druse_noise_key *key, int64_t n_rows,
                    int32_t first_step, int32_t last_step, const double *scale, const double *eps_scale,
                    const double *noise_scale, const float *terms, float *z, uint32_t *status) {
    const Kernels &kernel = kernels(exec->isa);
    const int64_t total = total_width(net);
    return by_blocks(exec, net, n_rows, z, [&](Block &block, int64_t first, int64_t count) {
        for (int32_t t = first_step; t >= last_step; --t) {
            kernel.residual_mlp(net, count, block.z.data, terms + first * total, net->steps + t * total,
                                block.work.data, block.eps.data);
            druse_noise_key step_key = *key;
            step_key.step = static_cast<uint32_t>(t);
            step_key.step_at = nullptr;
            for (int64_t row = 0; row < count; ++row)
                status[first + row] |= ddpm_row(
                    kernel, step_key, key->crystal_ids[first + row], net->latent, static_cast<float>(scale[t]),
                    static_cast<float>(eps_scale[t]), static_cast<float>(noise_scale[t]),
                    block.eps.data + row * net->latent, nullptr, block.z.data + row * net->latent);
        }
        memcpy(z + first * net->latent, block.z.data, static_cast<size_t>(count * net->latent) * sizeof(float));
    });
}

}  // namespace cpu
}  // namespace druse
