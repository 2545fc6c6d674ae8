// druse.h: checks of the arguments, then the device.
#include <string.h>

#include "core/philox.hpp"
#include "cpu/cpu.hpp"
#include "cpu/pool.hpp"
#include "cuda/cuda.hpp"

#define DRUSE_REQUIRE(condition)                       \
    do {                                               \
        if (!(condition)) return DRUSE_ERROR_ARGUMENT; \
    } while (0)

#define DRUSE_DISPATCH(operation, ...)                                              \
    return exec->device == DRUSE_CUDA ? druse::cuda::operation(exec, __VA_ARGS__)   \
                                      : druse::cpu::operation(exec, __VA_ARGS__)

namespace {

// On the host the offsets themselves are checked; those in device memory are the caller's to keep.
bool valid_offsets(const druse_exec *exec, int64_t count, const int64_t *offsets) {
    if (exec->device == DRUSE_CUDA) return true;
    if (offsets[0] != 0) return false;
    for (int64_t b = 0; b < count; ++b)
        if (offsets[b + 1] < offsets[b]) return false;
    return offsets[count] <= INT32_MAX;
}

int32_t check_exec(const druse_exec *exec) {
    if (exec == nullptr || exec->n_threads < 0) return DRUSE_ERROR_ARGUMENT;
    if (exec->device == DRUSE_CUDA) return druse::cuda::built() ? DRUSE_OK : DRUSE_ERROR_UNSUPPORTED;
    if (exec->device != DRUSE_CPU || exec->isa < DRUSE_ISA_BEST || exec->isa > DRUSE_ISA_AVX512)
        return DRUSE_ERROR_ARGUMENT;
    return druse::cpu::isa_available(exec->isa) ? DRUSE_OK : DRUSE_ERROR_UNSUPPORTED;
}

bool valid_key(const druse_noise_key *key) {
    return key != nullptr && key->purpose < 256 && key->crystal_ids != nullptr;
}

bool within_blocks(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, int32_t width) {
    if (offsets == nullptr || exec->device == DRUSE_CUDA) return width <= 1 << 26;
    const int64_t blocks_per_row = (width + 3) / 4;
    for (int64_t b = 0; b < n_crystals; ++b)
        if ((offsets[b + 1] - offsets[b]) * blocks_per_row > 1 << 24) return false;
    return true;
}

int32_t check_draw(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                   int32_t width, const void *out) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_crystals >= 0 && width > 0 && valid_key(key) && out != nullptr);
    DRUSE_REQUIRE(offsets == nullptr || valid_offsets(exec, n_crystals, offsets));
    DRUSE_REQUIRE(within_blocks(exec, n_crystals, offsets, width));
    return DRUSE_OK;
}

// The widths must mirror one another, or a layer would read beyond what another wrote.
bool valid_mlp(const druse_residual_mlp *net) {
    if (net == nullptr || net->widths == nullptr || net->weights == nullptr || net->steps == nullptr) return false;
    const int32_t n = net->n_layers;
    if (n < 4 || n > 32 || n % 2 != 0 || net->n_steps <= 0) return false;
    for (int32_t i = 0; i < n; ++i)
        if (net->widths[i] <= 0 || net->widths[i] % DRUSE_PANEL != 0 || net->widths[i] > 1 << 20 ||
            net->weights[i] == nullptr)
            return false;
    const int32_t n_down = n / 2 - 1;
    for (int32_t k = 0; k <= n_down; ++k)  // what comes out of layer n_down + k meets what went into layer n_down - k
        if (net->widths[n_down + k] != (k == n_down ? net->latent : net->widths[n_down - k - 1])) return false;
    return net->widths[n - 1] == net->latent;
}

bool valid_table(int64_t n_atoms, int64_t n_edges, int64_t capacity, const int32_t *edge, const int32_t *degree) {
    if (capacity < 0 || (n_atoms > 0 && (degree == nullptr || (capacity > 0 && edge == nullptr)))) return false;
    for (int64_t n = 0; n < n_atoms; ++n, edge += capacity) {
        if (degree[n] < 0 || degree[n] > capacity) return false;
        for (int32_t k = 0; k < degree[n]; ++k)
            if (edge[k] < 0 || edge[k] >= n_edges) return false;
    }
    return true;
}

int32_t check_paths(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical, int32_t n_basis,
                    int32_t channels) {
    if (const int32_t failure = check_exec(exec)) return failure;
    if (exec->device != DRUSE_CPU) return DRUSE_ERROR_UNSUPPORTED;
    DRUSE_REQUIRE(paths != nullptr && paths->n_atoms >= 0 && paths->n_edges >= 0 && paths->n_edges <= INT32_MAX);
    DRUSE_REQUIRE(paths->mirror >= 0 && (paths->mirror == 0 || paths->n_edges <= 2 * paths->mirror));
    DRUSE_REQUIRE(n_spherical > 0 && n_spherical <= 64 && n_basis > 0 && n_basis <= 1 << 12);
    DRUSE_REQUIRE(channels > 0 && channels <= 1 << 12 && channels % 16 == 0);
    DRUSE_REQUIRE(paths->n_edges == 0 || paths->unit != nullptr);
    DRUSE_REQUIRE(valid_table(paths->n_atoms, paths->n_edges, paths->row_capacity, paths->row_edge, paths->row_degree));
    DRUSE_REQUIRE(valid_table(paths->n_atoms, paths->n_edges, paths->sum_capacity, paths->sum_edge, paths->sum_degree));
    return DRUSE_OK;
}

bool within(int64_t count, const int32_t *values, int32_t first, int64_t last) {
    if (count > 0 && values == nullptr) return false;
    for (int64_t k = 0; k < count; ++k)
        if (values[k] < first || values[k] > last) return false;
    return true;
}

int32_t check_gemnet(const druse_gemnet *net, const druse_gemnet_batch *batch) {
    DRUSE_REQUIRE(net != nullptr && batch != nullptr);
    const int32_t widths[] = {net->atom, net->edge, net->triplet, net->bilinear};
    for (const int32_t width : widths)
        DRUSE_REQUIRE(width > 0 && width % DRUSE_PANEL == 0 && width <= 1 << 12);
    DRUSE_REQUIRE(net->rbf > 0 && net->rbf <= 1 << 10 && net->cbf > 0 && net->cbf <= 1 << 10);
    DRUSE_REQUIRE(net->n_radial > 1 && net->n_radial <= 1 << 12 && net->n_spherical > 0 && net->n_spherical <= 64);
    DRUSE_REQUIRE(net->cutoff > 0.0 && net->n_species > 0 && net->n_levels > 0);
    const int32_t counts[] = {net->n_blocks, net->n_before_skip, net->n_after_skip, net->n_concat, net->n_atom};
    for (const int32_t count : counts) DRUSE_REQUIRE(count >= 0 && count <= 64);
    DRUSE_REQUIRE(net->weights != nullptr && net->sharpness != nullptr && net->factors != nullptr);
    const int64_t n_edges = batch->n_edges, mirror = batch->mirror;
    DRUSE_REQUIRE(batch->n_crystals >= 0 && batch->n_atoms >= 0 && batch->n_atoms <= INT32_MAX);
    DRUSE_REQUIRE(n_edges >= 0 && mirror >= n_edges && mirror <= INT32_MAX / 2);
    DRUSE_REQUIRE(n_edges == 0 || (batch->distance != nullptr && batch->unit != nullptr));
    DRUSE_REQUIRE(within(n_edges, batch->src, 0, batch->n_atoms - 1) && within(n_edges, batch->dst, 0, batch->n_atoms - 1));
    DRUSE_REQUIRE(within(batch->n_atoms, batch->crystal, 0, batch->n_crystals - 1));
    DRUSE_REQUIRE(within(batch->n_atoms, batch->species, 1, net->n_species));
    DRUSE_REQUIRE(within(batch->n_crystals, batch->level, 0, net->n_levels - 1));
    DRUSE_REQUIRE(batch->n_crystals == 0 || batch->latent != nullptr);
    DRUSE_REQUIRE(valid_table(batch->n_atoms, mirror + n_edges, batch->degree_capacity, batch->in_edge, batch->degree));
    int64_t total = 0;  // every directed edge has one place, or a row of the network would stay unwritten
    for (int64_t n = 0; n < batch->n_atoms; ++n) {
        total += batch->degree[n];
        const int32_t *edge = batch->in_edge + n * batch->degree_capacity;
        for (int32_t k = 0; k < batch->degree[n]; ++k)
            DRUSE_REQUIRE(edge[k] < n_edges || edge[k] >= mirror);
    }
    DRUSE_REQUIRE(total <= 2 * n_edges);
    return DRUSE_OK;
}

}  // namespace

extern "C" {

int32_t druse_abi_version(void) { return DRUSE_ABI_VERSION; }

const char *druse_result_string(int32_t result) {
    switch (result) {
        case DRUSE_OK: return "ok";
        case DRUSE_ERROR_ARGUMENT: return "an argument is out of range";
        case DRUSE_ERROR_MEMORY: return "out of memory";
        case DRUSE_ERROR_UNSUPPORTED: return "not supported by this build or on this machine";
        case DRUSE_ERROR_CUDA: return "a CUDA call failed";
        default: return "unknown result";
    }
}

int32_t druse_best_isa(void) { return druse::cpu::best_isa(); }
int32_t druse_hardware_threads(void) { return druse::hardware_threads(); }
int32_t druse_has_cuda(void) { return druse::cuda::built() ? 1 : 0; }
int32_t druse_cuda_devices(void) { return druse::cuda::devices(); }

int32_t druse_radius_graph(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const double *frac,
                           const double *cells, const druse_graph_options *options, druse_edges *edges) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_crystals >= 0 && offsets != nullptr && options != nullptr && edges != nullptr);
    DRUSE_REQUIRE(options->cutoff > 0.0 && options->cutoff < 1e6 && options->max_neighbors > 0);
    DRUSE_REQUIRE(options->shell_tolerance < 1e6);
    DRUSE_REQUIRE(options->mode == DRUSE_MODE_EXACT || options->mode == DRUSE_MODE_UPSTREAM);
    DRUSE_REQUIRE(options->symmetrise >= DRUSE_SYMMETRISE_NONE && options->symmetrise <= DRUSE_SYMMETRISE_UNION);
    DRUSE_REQUIRE(edges->edge_capacity >= 0 && edges->edge_capacity <= INT32_MAX / 2);
    DRUSE_REQUIRE(edges->edge_offsets != nullptr);
    if (n_crystals > 0)
        DRUSE_REQUIRE(cells != nullptr && edges->edge_counts != nullptr && edges->status != nullptr);
    if (edges->edge_capacity > 0)
        DRUSE_REQUIRE(edges->src != nullptr && edges->dst != nullptr && edges->image != nullptr &&
                      edges->distance != nullptr && edges->unit != nullptr);
    DRUSE_REQUIRE(valid_offsets(exec, n_crystals, offsets));
    DRUSE_REQUIRE(frac != nullptr || (exec->device == DRUSE_CPU && offsets[n_crystals] == 0));
    DRUSE_DISPATCH(radius_graph, n_crystals, offsets, frac, cells, options, edges);
}

int64_t druse_graph_workspace(const druse_exec *exec, int64_t n_crystals, int64_t n_atoms) {
    if (check_exec(exec) != DRUSE_OK || exec->device == DRUSE_CPU || n_crystals < 0 || n_atoms < 0) return 0;
    return druse::cuda::graph_workspace(n_crystals, n_atoms);
}

int32_t druse_incidence(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets,
                        const int64_t *edge_offsets, const int32_t *src, const int32_t *dst, int64_t mirror,
                        int64_t degree_capacity, int32_t pad, int32_t *in_edge, int32_t *slot, int32_t *degree,
                        uint32_t *status) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_crystals >= 0 && offsets != nullptr && edge_offsets != nullptr);
    DRUSE_REQUIRE(mirror >= 0 && mirror <= INT32_MAX / 2 && degree_capacity >= 0);
    DRUSE_REQUIRE(valid_offsets(exec, n_crystals, offsets) && valid_offsets(exec, n_crystals, edge_offsets));
    if (exec->device == DRUSE_CPU) {
        const int64_t n_atoms = offsets[n_crystals], n_edges = edge_offsets[n_crystals];
        DRUSE_REQUIRE(n_atoms == 0 || (degree != nullptr && (in_edge != nullptr || degree_capacity == 0)));
        DRUSE_REQUIRE(degree_capacity == 0 || n_atoms <= INT32_MAX / degree_capacity);
        DRUSE_REQUIRE(mirror == 0 || n_edges <= mirror);
        DRUSE_REQUIRE(n_crystals == 0 || status != nullptr);
        DRUSE_REQUIRE(n_edges == 0 || (src != nullptr && dst != nullptr));
        for (int64_t b = 0; b < n_crystals; ++b)
            for (int64_t e = edge_offsets[b]; e < edge_offsets[b + 1]; ++e)
                DRUSE_REQUIRE(dst[e] >= offsets[b] && dst[e] < offsets[b + 1] && src[e] >= offsets[b] &&
                              src[e] < offsets[b + 1]);
    }
    DRUSE_DISPATCH(incidence, n_crystals, offsets, edge_offsets, src, dst, mirror, degree_capacity, pad, in_edge, slot,
                   degree, status);
}

void druse_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    druse::Words words;
    memcpy(words.w, counter, sizeof words.w);
    words = druse::philox(words, key[0], key[1]);
    memcpy(out, words.w, sizeof words.w);
}

int32_t druse_normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                     int32_t width, float *out) {
    if (const int32_t failure = check_draw(exec, key, n_crystals, offsets, width, out)) return failure;
    DRUSE_DISPATCH(normal, key, n_crystals, offsets, width, out);
}

int32_t druse_uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                      int32_t width, double *out) {
    if (const int32_t failure = check_draw(exec, key, n_crystals, offsets, width, out)) return failure;
    DRUSE_DISPATCH(uniform, key, n_crystals, offsets, width, out);
}

int32_t druse_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                     int32_t width, float *out) {
    if (const int32_t failure = check_draw(exec, key, n_crystals, offsets, width, out)) return failure;
    DRUSE_DISPATCH(gumbel, key, n_crystals, offsets, width, out);
}

int32_t druse_add_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                         int32_t width, float *values) {
    if (const int32_t failure = check_draw(exec, key, n_crystals, offsets, width, values)) return failure;
    DRUSE_DISPATCH(add_gumbel, key, n_crystals, offsets, width, values);
}

int32_t druse_langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                       const double *cells, double drift, double diffusion, const double *move_at, const float *score,
                       const float *noise, int32_t n_species, const float *logits, const uint8_t *allowed, double *frac,
                       int32_t *species, uint32_t *status) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_crystals >= 0 && offsets != nullptr && (noise != nullptr || valid_key(key)));
    DRUSE_REQUIRE(cells != nullptr && score != nullptr && frac != nullptr && status != nullptr);
    DRUSE_REQUIRE(logits == nullptr || (n_species > 0 && species != nullptr));
    DRUSE_REQUIRE(__builtin_isfinite(drift) && __builtin_isfinite(diffusion));
    if (exec->device == DRUSE_CPU && move_at != nullptr)
        DRUSE_REQUIRE(__builtin_isfinite(move_at[0]) && __builtin_isfinite(move_at[1]));
    DRUSE_REQUIRE(valid_offsets(exec, n_crystals, offsets) && within_blocks(exec, n_crystals, offsets, 3));
    DRUSE_DISPATCH(langevin, key, n_crystals, offsets, cells, drift, diffusion, move_at, score, noise, n_species,
                   logits, allowed, frac, species, status);
}

int32_t druse_ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width, double scale,
                   double eps_scale, double noise_scale, const float *eps, const float *noise, float *z,
                   uint32_t *status) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_crystals >= 0 && width > 0 && width <= 1 << 26 && (noise != nullptr || valid_key(key)));
    DRUSE_REQUIRE(eps != nullptr && z != nullptr && status != nullptr);
    DRUSE_REQUIRE(__builtin_isfinite(scale) && __builtin_isfinite(eps_scale) && __builtin_isfinite(noise_scale));
    DRUSE_DISPATCH(ddpm, key, n_crystals, width, scale, eps_scale, noise_scale, eps, noise, z, status);
}

int32_t druse_combine(const druse_exec *exec, int64_t count, double a, const float *x, double b, const float *y,
                      double c, float *out) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(count >= 0 && (count == 0 || (x != nullptr && out != nullptr)));
    DRUSE_REQUIRE(__builtin_isfinite(a) && __builtin_isfinite(b) && __builtin_isfinite(c));
    DRUSE_DISPATCH(combine, count, static_cast<float>(a), x, static_cast<float>(b), y, static_cast<float>(c), out);
}

int32_t druse_advance(const druse_exec *exec, int64_t count, const int32_t *by, uint32_t *counters) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(count >= 0 && (count == 0 || (by != nullptr && counters != nullptr)));
    DRUSE_DISPATCH(advance, count, by, counters);
}

int32_t druse_pad_graph(const druse_exec *exec, const int64_t *offsets, const int64_t *edge_offsets,
                        const druse_padded_graph *graph) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(offsets != nullptr && edge_offsets != nullptr && graph != nullptr);
    const druse_padded_graph &g = *graph;
    DRUSE_REQUIRE(g.n_crystals >= 0 && g.n_atoms > 0 && g.n_edges > 0 && g.degree_capacity > 0);
    DRUSE_REQUIRE(g.n_edges <= INT32_MAX / 2 && g.n_atoms <= INT32_MAX / g.degree_capacity && g.cutoff > 0.0);
    DRUSE_REQUIRE(g.src != nullptr && g.dst != nullptr && g.distance != nullptr && g.in_edge != nullptr);
    DRUSE_REQUIRE(g.degree != nullptr && g.slot != nullptr && g.valid != nullptr);
    DRUSE_REQUIRE(g.n_crystals == 0 || (g.status != nullptr && g.met != nullptr));
    DRUSE_REQUIRE(valid_offsets(exec, g.n_crystals, offsets) && valid_offsets(exec, g.n_crystals, edge_offsets));
    if (exec->device == DRUSE_CPU)
        DRUSE_REQUIRE(offsets[g.n_crystals] < g.n_atoms && edge_offsets[g.n_crystals] < g.n_edges);
    DRUSE_DISPATCH(pad_graph, offsets, edge_offsets, graph);
}

int32_t druse_radial_basis(const druse_exec *exec, int64_t n_edges, const float *distance, double cutoff,
                           int32_t n_radial, float *out) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_edges >= 0 && cutoff > 0.0 && n_radial > 1 && n_radial <= 1 << 16);
    DRUSE_REQUIRE(n_edges == 0 || (distance != nullptr && out != nullptr));
    DRUSE_DISPATCH(radial_basis, n_edges, distance, cutoff, n_radial, out);
}

int32_t druse_legendre(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical,
                       const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit, float *out) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_atoms >= 0 && degree_capacity >= 0 && n_spherical > 0 && n_spherical <= 64 && mirror >= 0);
    DRUSE_REQUIRE(n_atoms == 0 || degree_capacity == 0 ||
                  (in_edge != nullptr && degree != nullptr && unit != nullptr && out != nullptr));
    DRUSE_DISPATCH(legendre, n_atoms, degree_capacity, n_spherical, in_edge, degree, mirror, unit, out);
}

int32_t druse_force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                        const int32_t *degree, int64_t mirror, const float *unit, const float *force, float *out) {
    if (const int32_t failure = check_exec(exec)) return failure;
    DRUSE_REQUIRE(n_atoms >= 0 && degree_capacity >= 0 && mirror >= 0);
    DRUSE_REQUIRE(n_atoms == 0 || (degree != nullptr && out != nullptr));
    DRUSE_REQUIRE(n_atoms == 0 || degree_capacity == 0 || (in_edge != nullptr && unit != nullptr && force != nullptr));
    DRUSE_DISPATCH(force_sum, n_atoms, degree_capacity, in_edge, degree, mirror, unit, force, out);
}

int32_t druse_path_sum(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical, int32_t n_radial,
                       int32_t channels, const float *spherical, const float *weight, const float *x, float *out) {
    if (const int32_t failure = check_paths(exec, paths, n_spherical, n_radial, channels)) return failure;
    DRUSE_REQUIRE(weight != nullptr);
    DRUSE_REQUIRE(paths->n_edges == 0 || (spherical != nullptr && x != nullptr && out != nullptr));
    return druse::cpu::path_sum(
        exec, {paths, n_spherical, n_radial, channels, spherical, weight, x, nullptr, out, nullptr});
}

int32_t druse_path_sum_gradient(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical, int32_t n_radial,
                                int32_t channels, const float *spherical, const float *weight, const float *x,
                                const float *given, float *of_weight, float *of_x) {
    if (const int32_t failure = check_paths(exec, paths, n_spherical, n_radial, channels)) return failure;
    DRUSE_REQUIRE(weight != nullptr && of_weight != nullptr);
    DRUSE_REQUIRE(paths->n_edges == 0 ||
                  (spherical != nullptr && x != nullptr && given != nullptr && of_x != nullptr));
    return druse::cpu::path_sum_gradient(
        exec, {paths, n_spherical, n_radial, channels, spherical, weight, x, given, nullptr, of_x}, of_weight);
}

int32_t druse_triplet_sum(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical, int32_t n_basis,
                          int32_t channels, const float *radial, const float *x, float *out) {
    if (const int32_t failure = check_paths(exec, paths, n_spherical, n_basis, channels)) return failure;
    DRUSE_REQUIRE(paths->n_edges == 0 || (radial != nullptr && x != nullptr && out != nullptr));
    return druse::cpu::triplet_sum(
        exec, {paths, n_spherical, n_basis, channels, radial, x, nullptr, out, nullptr, nullptr});
}

int32_t druse_triplet_sum_gradient(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical,
                                   int32_t n_basis, int32_t channels, const float *radial, const float *x,
                                   const float *given, float *of_radial, float *of_x) {
    if (const int32_t failure = check_paths(exec, paths, n_spherical, n_basis, channels)) return failure;
    DRUSE_REQUIRE(paths->n_edges == 0 || (radial != nullptr && x != nullptr && given != nullptr &&
                                          of_radial != nullptr && of_x != nullptr));
    return druse::cpu::triplet_sum_gradient(
        exec, {paths, n_spherical, n_basis, channels, radial, x, given, nullptr, of_radial, of_x});
}

int32_t druse_pack(int32_t n_in, int32_t n_out, const float *matrix, float *packed) {
    DRUSE_REQUIRE(n_in > 0 && n_out > 0 && matrix != nullptr && packed != nullptr);
    return druse::cpu::pack(n_in, n_out, matrix, packed);
}

int32_t druse_prior_eps(const druse_exec *exec, const druse_residual_mlp *net, int64_t n_rows, int32_t step,
                        const float *z, const float *terms, float *eps) {
    if (const int32_t failure = check_exec(exec)) return failure;
    if (exec->device != DRUSE_CPU) return DRUSE_ERROR_UNSUPPORTED;
    DRUSE_REQUIRE(valid_mlp(net) && n_rows >= 0 && step >= 0 && step < net->n_steps);
    DRUSE_REQUIRE(n_rows == 0 || (z != nullptr && terms != nullptr && eps != nullptr));
    return druse::cpu::prior_eps(exec, net, n_rows, step, z, terms, eps);
}

int32_t druse_prior_chain(const druse_exec *exec, const druse_residual_mlp *net, const druse_noise_key *key,
                          int64_t n_rows, int32_t first_step, int32_t last_step, const double *scale,
                          const double *eps_scale, const double *noise_scale, const float *terms, float *z,
                          uint32_t *status) {
    if (const int32_t failure = check_exec(exec)) return failure;
    if (exec->device != DRUSE_CPU) return DRUSE_ERROR_UNSUPPORTED;
    DRUSE_REQUIRE(valid_mlp(net) && valid_key(key) && n_rows >= 0 && net->latent <= 1 << 26);
    DRUSE_REQUIRE(last_step >= 0 && first_step >= last_step && first_step < net->n_steps);
    DRUSE_REQUIRE(scale != nullptr && eps_scale != nullptr && noise_scale != nullptr);
    for (int32_t t = last_step; t <= first_step; ++t)
        DRUSE_REQUIRE(__builtin_isfinite(scale[t]) && __builtin_isfinite(eps_scale[t]) &&
                      __builtin_isfinite(noise_scale[t]));
    DRUSE_REQUIRE(n_rows == 0 || (terms != nullptr && z != nullptr && status != nullptr));
    return druse::cpu::prior_chain(exec, net, key, n_rows, first_step, last_step, scale, eps_scale, noise_scale, terms,
                                   z, status);
}

int32_t druse_gemnet_score(const druse_exec *exec, const druse_gemnet *net, const druse_gemnet_batch *batch,
                           float *score, float *logits) {
    if (const int32_t failure = check_exec(exec)) return failure;
    if (exec->device != DRUSE_CPU) return DRUSE_ERROR_UNSUPPORTED;
    if (const int32_t failure = check_gemnet(net, batch)) return failure;
    DRUSE_REQUIRE(batch->n_atoms == 0 || (score != nullptr && logits != nullptr));
    return druse::cpu::gemnet(exec, *net, *batch, score, logits);
}

}  // extern "C"
