// The operations of druse.h on the CPU. Arguments have been checked.
#pragma once

#include "kernels.hpp"

namespace druse {
namespace cpu {

int best_isa();
bool isa_available(int isa);

int32_t radius_graph(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const double *frac,
                     const double *cells, const druse_graph_options *options, druse_edges *edges);
int32_t incidence(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets, const int64_t *edge_offsets,
                  const int32_t *src, const int32_t *dst, int64_t mirror, int64_t degree_capacity, int32_t pad,
                  int32_t *in_edge, int32_t *slot, int32_t *degree, uint32_t *status);
int32_t normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out);
int32_t uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                int32_t width, double *out);
int32_t gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
               int32_t width, float *out);
int32_t langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                 const double *cells, double drift, double diffusion, const double *move_at, const float *score,
                 const float *noise, int32_t n_species, const float *logits, const uint8_t *allowed, double *frac,
                 int32_t *species, uint32_t *status);
int32_t ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width, double scale,
             double eps_scale, double noise_scale, const float *eps, const float *noise, float *z, uint32_t *status);
int32_t add_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, const int64_t *offsets,
                   int32_t width, float *values);
int32_t combine(const druse_exec *exec, int64_t count, float a, const float *x, float b, const float *y, float c,
                float *out);
int32_t advance(const druse_exec *exec, int64_t count, const int32_t *by, uint32_t *counters);
int32_t pad_graph(const druse_exec *exec, const int64_t *offsets, const int64_t *edge_offsets,
                  const druse_padded_graph *graph);
int32_t radial_basis(const druse_exec *exec, int64_t n_edges, const float *distance, double cutoff, int32_t n_radial,
                     float *out);
int32_t legendre(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical,
                 const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit, float *out);
int32_t force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge,
                  const int32_t *degree, int64_t mirror, const float *unit, const float *force, float *out);
int32_t path_sum(const druse_exec *exec, const PathSum &sum);
int32_t path_sum_gradient(const druse_exec *exec, const PathSum &sum, float *of_weight);
int32_t triplet_sum(const druse_exec *exec, const TripletSum &sum);
int32_t triplet_sum_gradient(const druse_exec *exec, const TripletSum &sum);
int32_t gemnet(const druse_exec *exec, const druse_gemnet &net, const druse_gemnet_batch &batch, float *score,
               float *logits);
int32_t pack(int32_t n_in, int32_t n_out, const float *matrix, float *packed);
int32_t prior_eps(const druse_exec *exec, const druse_residual_mlp *net, int64_t n_rows, int32_t step, const float *z,
                  const float *terms, float *eps);
int32_t prior_chain(const druse_exec *exec, const druse_residual_mlp *net, const druse_noise_key *key, int64_t n_rows,
                    int32_t first_step, int32_t last_step, const double *scale, const double *eps_scale,
                    const double *noise_scale, const float *terms, float *z, uint32_t *status);

}  // namespace cpu
}  // namespace druse
