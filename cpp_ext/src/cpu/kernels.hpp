// What each instruction set provides: loops over rows, crystals and atoms, called from the thread pool.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "druse.h"

namespace druse {

constexpr int kPanel = DRUSE_PANEL;
constexpr int kDenseRows = 48;  // rows of a network that a core takes at a time; a multiple of every tile
constexpr int kMostLayers = 32;
constexpr int64_t kScratchKept = 64 << 20;  // bytes of working memory that a thread may keep between calls

// A growing array that reports failure instead of throwing, and never shrinks. Always inline: this header is compiled for
// several instruction sets, and the linker must not choose one set's copy for all.
#define DRUSE_INLINE __attribute__((always_inline)) inline

template <class T>
struct Buffer {
    T *data = nullptr;
    int64_t capacity = 0;

    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { free(data); }

    DRUSE_INLINE bool reserve(int64_t wanted) {
        if (wanted <= capacity) return true;
        const int64_t size = wanted + wanted / 2 + 64;
        void *grown = realloc(data, static_cast<size_t>(size) * sizeof(T));
        if (grown == nullptr) return false;
        data = static_cast<T *>(grown);
        capacity = size;
        return true;
    }
    DRUSE_INLINE void release() {
        free(data);
        data = nullptr;
        capacity = 0;
    }
    DRUSE_INLINE T &operator[](int64_t i) { return data[i]; }
    DRUSE_INLINE int64_t bytes() const { return capacity * static_cast<int64_t>(sizeof(T)); }
};

// Edges of one crystal, atoms counted from 0: arrays as in druse_edges.
struct EdgeArrays {
    Buffer<int32_t> src, dst, image;
    Buffer<float> distance, unit;

    DRUSE_INLINE bool reserve(int64_t n) {
        return src.reserve(n) && dst.reserve(n) && image.reserve(3 * n) && distance.reserve(n) && unit.reserve(3 * n);
    }
    DRUSE_INLINE int64_t bytes() const {
        return src.bytes() + dst.bytes() + image.bytes() + distance.bytes() + unit.bytes();
    }
};

// A thread's working memory for one crystal, kept between calls.
struct GraphScratch {
    Buffer<double> double_atoms, double_images, double_work;
    Buffer<float> float_atoms, float_images, float_work;
    Buffer<int32_t> int_atoms, int_images;
    Buffer<float> candidate_d2;
    Buffer<int32_t> candidate_id, chosen_id;
    EdgeArrays edges;            // directed, grouped by target
    Buffer<int64_t> first_edge;  // [n + 1]
    EdgeArrays half_edges;

    DRUSE_INLINE int64_t bytes() const {
        return double_atoms.bytes() + double_images.bytes() + double_work.bytes() + float_atoms.bytes() +
               float_images.bytes() + float_work.bytes() + int_atoms.bytes() + int_images.bytes() +
               candidate_d2.bytes() + candidate_id.bytes() + chosen_id.bytes() + edges.bytes() + first_edge.bytes() +
               half_edges.bytes();
    }
};

struct CrystalGraph {
    const EdgeArrays *edges = nullptr;
    int64_t count = 0;
    uint32_t status = 0;
};

// A thread's working memory for one atom's block.
struct PathScratch {
    Buffer<float> floats;
    Buffer<int32_t> labels;

    DRUSE_INLINE void end() {
        if (floats.bytes() > kScratchKept) floats.release();
    }
};

// druse_path_sum and its gradient; what one of them does not take is null.
struct PathSum {
    const druse_paths *paths;
    int32_t n_spherical, n_radial, channels;
    const float *spherical, *weight, *x, *given;
    float *out, *of_x;
};

// druse_triplet_sum and its gradient.
struct TripletSum {
    const druse_paths *paths;
    int32_t n_spherical, n_basis, channels;
    const float *radial, *x, *given;
    float *out, *of_radial, *of_x;
};

// A thread's working memory for a bin of crystals.
struct GemNetScratch {
    PathScratch paths;
    Buffer<float> floats;
    Buffer<int32_t> rows;

    DRUSE_INLINE void end() {
        paths.end();
        if (floats.bytes() > kScratchKept) floats.release();
    }
};

struct Kernels {
    // The edges of one crystal; false when memory ran out.
    bool (*graph)(GraphScratch *scratch, int64_t n_atoms, const double *frac, const double *cell,
                  const druse_graph_options *options, CrystalGraph *out);
    // rows x width draws of one crystal, from a block on
    void (*normal)(uint64_t seed, uint64_t crystal_id, uint32_t step, uint32_t purpose, uint32_t first_block,
                   int64_t n_rows, int32_t width, float *out);
    void (*ddpm)(int64_t count, float scale, float eps_scale, float noise_scale, const float *eps, const float *noise,
                 const float *z, float *out);
    void (*radial_basis)(int64_t n_edges, const float *distance, float cutoff, int32_t n_radial, float *out);
    // `vectors` is working memory of 3 * degree_capacity
    void (*legendre)(int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical, const int32_t *in_edge,
                     const int32_t *degree, int64_t mirror, const float *unit, float *vectors, float *out);
    void (*force_sum)(int64_t n_atoms, int64_t degree_capacity, const int32_t *in_edge, const int32_t *degree,
                      int64_t mirror, const float *unit, const float *force, float *out);
    // up to kDenseRows rows, see dense_kernel.hpp
    void (*residual_mlp)(const druse_residual_mlp *net, int64_t n_rows, const float *z, const float *terms,
                         const float *step, float *work, float *eps);
    // atoms from begin to end, see paths_kernel.hpp; false when memory ran out
    bool (*path_sum)(const PathSum &sum, int64_t begin, int64_t end, PathScratch *scratch);
    bool (*path_sum_gradient)(const PathSum &sum, int64_t begin, int64_t end, float *of_weight, PathScratch *scratch);
    bool (*triplet_sum)(const TripletSum &sum, int64_t begin, int64_t end, PathScratch *scratch);
    bool (*triplet_sum_gradient)(const TripletSum &sum, int64_t begin, int64_t end, PathScratch *scratch);
    // see gemnet_kernel.hpp; false when memory ran out
    bool (*gemnet)(const druse_gemnet &net, const druse_gemnet_batch &batch, GemNetScratch *scratch, float *score,
                   float *logits);
};

const Kernels *kernels_baseline();
const Kernels *kernels_avx2();    // nullptr where not built
const Kernels *kernels_avx512();  // nullptr where not built

}  // namespace druse
