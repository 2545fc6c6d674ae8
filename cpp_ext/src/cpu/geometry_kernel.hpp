// The decoder's geometry: core/basis.hpp over edges and over the dense block of each atom.
#pragma once

#include "../core/basis.hpp"
#include "kernels.hpp"

namespace druse {
namespace DRUSE_ISA {

static void radial_basis(int64_t n_edges, const float *distance, float cutoff, int32_t n_radial, float *out) {
    const float intervals = static_cast<float>(n_radial - 1);
    const float exponent = -0.5f * intervals * intervals;
    for (int64_t e = 0; e < n_edges; ++e) {
        const float d = distance[e] / cutoff, height = envelope(d);
        float *row = out + e * n_radial;
        for (int32_t k = 0; k < n_radial; ++k)
            row[k] = height * gaussian(d, static_cast<float>(k) / intervals, exponent);
    }
}

static void legendre(int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical, const int32_t *in_edge,
                     const int32_t *degree, int64_t mirror, const float *unit, float *vectors, float *out) {
    float *x = vectors, *y = x + degree_capacity, *z = y + degree_capacity;
    const int64_t block = degree_capacity * n_spherical * degree_capacity;
    for (int64_t n = 0; n < n_atoms; ++n, in_edge += degree_capacity, out += block) {
        const int64_t d = degree[n] < degree_capacity ? degree[n] : degree_capacity;
        for (int64_t j = 0; j < d; ++j) {
            float v[3];
            unit_of(unit, mirror, in_edge[j], v);
            x[j] = v[0], y[j] = v[1], z[j] = v[2];
        }
        for (int64_t i = 0; i < d; ++i) {
            float *rows = out + i * n_spherical * degree_capacity;
            for (int32_t l = 0; l < n_spherical; ++l) {
                float *row = rows + l * degree_capacity;
                const float *previous = row - degree_capacity, *before = previous - degree_capacity;
                if (l == 0) {
                    for (int64_t j = 0; j < d; ++j) row[j] = j != i ? 1.0f : 0.0f;
                } else if (l == 1) {
                    for (int64_t j = 0; j < d; ++j) row[j] = previous[j] * ((x[i] * x[j] + y[i] * y[j]) + z[i] * z[j]);
                } else {
                    for (int64_t j = 0; j < d; ++j)
                        row[j] = legendre_next(l, (x[i] * x[j] + y[i] * y[j]) + z[i] * z[j], previous[j], before[j]);
                }
                for (int64_t j = d; j < degree_capacity; ++j) row[j] = 0.0f;
            }
        }
        memset(out + d * n_spherical * degree_capacity, 0,
               static_cast<size_t>((degree_capacity - d) * n_spherical * degree_capacity) * sizeof *out);
    }
}

static void force_sum(int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge, const int32_t *degree,
                      int64_t mirror, const float *unit, const float *force, float *out) {
    for (int64_t n = 0; n < n_atoms; ++n, in_edge += degree_capacity) {
        const int64_t d = degree[n] < degree_capacity ? degree[n] : degree_capacity;
        float sum[3] = {0.0f, 0.0f, 0.0f};
        for (int64_t k = 0; k < d; ++k) {
            const int64_t e = in_edge[k];
            float v[3];
            unit_of(unit, mirror, e, v);
            for (int c = 0; c < 3; ++c) sum[c] += force[e] * v[c];
        }
        out[3 * n] = sum[0];
        out[3 * n + 1] = sum[1];
        out[3 * n + 2] = sum[2];
    }
}

}  // namespace DRUSE_ISA
}  // namespace druse
