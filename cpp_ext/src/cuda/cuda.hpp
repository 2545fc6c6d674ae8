// The operations of druse.h on a CUDA device, queued on the stream of exec. Arguments have been checked.
#pragma once

#include "druse.h"

namespace druse {
namespace cuda {

bool built();
int devices();
int64_t graph_workspace(int64_t n_crystals, int64_t n_atoms);

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

}  // namespace cuda
}  // namespace druse
