/* druse.h - the whole native interface of Druse on one page.
 *
 * Plain C, no state but a thread pool and working memory of each thread (at most 64 MiB of each kind kept between calls).
 * Every function returns a druse_result, never throws and never writes past a
 * capacity that the caller stated. What is wrong with one crystal (NaN, flat cell, too many edges) is a bit in that
 * crystal's status word and leaves the others untouched; a druse_result other than DRUSE_OK means that the call itself
 * was wrong and nothing was written.
 *
 * Conventions
 *   batch     crystal b owns atoms offsets[b] .. offsets[b + 1] - 1; offsets[0] = 0; one crystal is a batch of one
 *   cells     row vectors in Angstrom: cart = frac @ cell; either handedness
 *   frac      float64, wrapped or not
 *   edge      source -> target: the atom at frac[src] + image, seen from frac[dst];
 *             unit = (cart[dst] - cart[src + image]) / distance points from source to target
 *   half edge an undirected edge, stored once with src < dst (or src == dst and image lexicographically negative);
 *             its mirror swaps src and dst, negates image and unit, and has the index e + edge_capacity
 *   arrays    C order, host memory for DRUSE_CPU and device memory for DRUSE_CUDA; nullable only where said
 *
 * Equal input gives equal bytes: on any number of threads, on any instruction set, at any place in a batch. Integer
 * results and noise are the same bytes on a GPU too.
 */
#ifndef DRUSE_H
#define DRUSE_H

#include <stdint.h>

#if defined(_WIN32)
#define DRUSE_API __declspec(dllexport)
#else
#define DRUSE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define DRUSE_ABI_VERSION 3

typedef enum {
    DRUSE_OK = 0,
    DRUSE_ERROR_ARGUMENT = 1,    /* a null pointer, a negative count, an unknown mode, a cutoff that is not positive */
    DRUSE_ERROR_MEMORY = 2,      /* working memory could not be had; the outputs are not to be used */
    DRUSE_ERROR_UNSUPPORTED = 3, /* this build or this machine cannot run the request (no CUDA, unknown isa) */
    DRUSE_ERROR_CUDA = 4         /* a CUDA call failed; the CUDA runtime holds the reason */
} druse_result;

typedef enum { DRUSE_CPU = 0, DRUSE_CUDA = 1 } druse_device;
typedef enum { DRUSE_ISA_BEST = 0, DRUSE_ISA_BASELINE = 1, DRUSE_ISA_AVX2 = 2, DRUSE_ISA_AVX512 = 3 } druse_isa;

/* Where to run. A CUDA call is queued on `stream` and does not wait for it. */
typedef struct {
    int32_t device;    /* druse_device */
    int32_t n_threads; /* CPU: 0 = every core this process may use */
    int32_t isa;       /* CPU: druse_isa; DRUSE_ISA_BEST except in tests */
    int32_t reserved;  /* 0 */
    void *stream;      /* CUDA: a cudaStream_t */
} druse_exec;

/* Bits of a crystal's status word. The first group stops that crystal: it has no edges (unless said otherwise), or keeps
 * its old state. */
enum {
    DRUSE_STATUS_NON_FINITE = 1 << 0,      /* NaN, infinity, a fraction beyond 1e8 or a cell beyond 1e15 Angstrom, in
                                              what describes it or in what an update would make of it */
    DRUSE_STATUS_SINGULAR = 1 << 1,        /* a flat or zero cell; exact mode: planes closer than 0.01 Angstrom, or so
                                              skewed that a reduced cell needs integers beyond 1e6 */
    DRUSE_STATUS_TOO_MANY_IMAGES = 1 << 2, /* more than 2^20 images in reach, or 2^31 pairs of atoms and images; or a
                                              cell so thin and skewed that an image in reach is 1e9 cells away */
    DRUSE_STATUS_EDGE_OVERFLOW = 1 << 3,   /* edge_capacity was too small; edge_counts says what is needed */
    DRUSE_STATUS_DEGREE_OVERFLOW = 1 << 4, /* degree_capacity was too small; degree says what is needed; edges stay */
    DRUSE_STATUS_OUT_OF_MEMORY = 1 << 5,   /* working memory could not be had, or was too small; its count is not known */
    /* and these only inform */
    DRUSE_STATUS_EMPTY = 1 << 8,      /* no atoms */
    DRUSE_STATUS_COINCIDENT = 1 << 9, /* two atoms within 0.01 Angstrom; that pair has no edge */
    DRUSE_STATUS_ISOLATED = 1 << 10   /* an atom without any neighbour within the cutoff */
};

/* ---- the library ------------------------------------------------------------------------------------------------ */

DRUSE_API int32_t druse_abi_version(void);
DRUSE_API const char *druse_result_string(int32_t result);
DRUSE_API int32_t druse_best_isa(void);         /* druse_isa */
DRUSE_API int32_t druse_hardware_threads(void); /* cores this process may use */
DRUSE_API int32_t druse_has_cuda(void);         /* built with CUDA */
DRUSE_API int32_t druse_cuda_devices(void);     /* CUDA devices that answer; 0 without a driver */

/* ---- periodic radius graph -------------------------------------------------------------------------------------- */

typedef enum {
    DRUSE_MODE_EXACT = 0,   /* every image; whole shells; float64 decides */
    DRUSE_MODE_UPSTREAM = 1 /* images -1, 0, 1; exactly K nearest; float32 in the order of operations of CDVAE */
} druse_graph_mode;

typedef enum {
    DRUSE_SYMMETRISE_NONE = 0,     /* directed edges, grouped by target */
    DRUSE_SYMMETRISE_UPSTREAM = 1, /* half edges: those directed edges that already have src < dst (GemNet in CDVAE) */
    DRUSE_SYMMETRISE_UNION = 2     /* half edges: every pair that either end chose */
} druse_symmetrise;

typedef struct {
    double cutoff;          /* Angstrom, > 0; a pair at the cutoff counts (exact mode: up to 1e-6 beyond) */
    double shell_tolerance; /* exact mode: keep all within this of the K-th distance, Angstrom; < 0: exactly K */
    int32_t max_neighbors;  /* K, > 0; INT32_MAX for all */
    int32_t mode;           /* druse_graph_mode */
    int32_t symmetrise;     /* druse_symmetrise */
    int32_t reserved;       /* 0 */
} druse_graph_options;

typedef struct {
    int64_t edge_capacity;
    int32_t *src;          /* [edge_capacity] atom index in the batch */
    int32_t *dst;          /* [edge_capacity] */
    int32_t *image;        /* [edge_capacity, 3] */
    float *distance;       /* [edge_capacity] Angstrom */
    float *unit;           /* [edge_capacity, 3] */
    int64_t *edge_offsets; /* [n_crystals + 1] edges of crystal b: edge_offsets[b] .. edge_offsets[b + 1] - 1 */
    int64_t *edge_counts;  /* [n_crystals] the true counts, also of crystals that did not fit */
    uint32_t *status;      /* [n_crystals] */
    void *workspace;       /* CUDA: working memory, aligned to 16; the CPU has its own, so null there */
    int64_t workspace_bytes;
} druse_edges;

/* Bytes of working memory that a graph of n_crystals with n_atoms in all needs on a device; 0 on the CPU. Nothing has to be
 * in it, and nothing in it outlasts the call, so calls on one stream can share it. */
DRUSE_API int64_t druse_graph_workspace(const druse_exec *exec, int64_t n_crystals, int64_t n_atoms);

/* The edges of every crystal, packed in batch order, by target and within a target by source (UNION: first those that
 * were half edges already, then the mirrors of those that only the other end chose). A crystal that does not
 * fit into what is left of edge_capacity writes no edge; later ones that fit still do. On CUDA, crystals whose atoms are
 * beyond those that workspace_bytes allows for are OUT_OF_MEMORY, and so are those of 2^31 pairs of atoms and images. */
DRUSE_API int32_t druse_radius_graph(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets,
                                     const double *frac, const double *cells, const druse_graph_options *options,
                                     druse_edges *edges);

/* The directed edges that end at each atom, as a table: in_edge[n, k] for k < degree[n], `pad` beyond, in order of
 * edge index (an edge before its mirror). `mirror` is 0 for directed edges; for half edges it is the index distance of
 * a mirror, and mirrors are listed too. slot[e] = atom * degree_capacity + k is the inverse, of mirror + n_edges
 * entries (nullable; those between n_edges and mirror are left alone). degree[n] is the true count; where it exceeds the capacity the row holds the first ones, slot is
 * -1 for the rest, and the crystal's status gains DEGREE_OVERFLOW. */
DRUSE_API int32_t druse_incidence(const druse_exec *exec, int64_t n_crystals, const int64_t *offsets,
                                  const int64_t *edge_offsets, const int32_t *src, const int32_t *dst, int64_t mirror,
                                  int64_t degree_capacity, int32_t pad, int32_t *in_edge, int32_t *slot,
                                  int32_t *degree, uint32_t *status);

/* ---- noise: Philox4x32-10 --------------------------------------------------------------------------------------- */

/* One block: 128-bit counter, 64-bit key, four words. */
DRUSE_API void druse_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* What a draw is named by. Block k of crystal c is Philox(counter = {c low, c high, step, purpose << 24 | k},
 * key = {seed low, seed high}); a row of `width` values takes ceil(width / 4) blocks and rows follow one another. */
typedef struct {
    uint64_t seed;     /* of the run */
    uint32_t purpose;  /* < 256: draws for different purposes never share a block */
    uint32_t step;     /* of the sampler */
    const uint64_t *crystal_ids; /* [n_crystals] */
    const uint32_t *step_at;     /* nullable: one number where the arrays are, that stands for `step` (not in druse_prior_chain) */
} druse_noise_key;

/* Standard normal draws (Box-Muller), uniform ones in (0, 1), and standard Gumbel ones, whose sums with logits are largest
 * at each index with its softmax probability. `offsets` nullable: one row a crystal. */
DRUSE_API int32_t druse_normal(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals,
                               const int64_t *offsets, int32_t width, float *out);
DRUSE_API int32_t druse_uniform(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals,
                                const int64_t *offsets, int32_t width, double *out);
DRUSE_API int32_t druse_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals,
                               const int64_t *offsets, int32_t width, float *out);

/* values += druse_gumbel, in place. */
DRUSE_API int32_t druse_add_gumbel(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals,
                                   const int64_t *offsets, int32_t width, float *values);

/* ---- sampler updates, in place ---------------------------------------------------------------------------------- */

/* x' = x + drift * score + diffusion * noise in Cartesian Angstrom (eqs 2 and 7: drift = step, diffusion =
 * sqrt(2 step)), wrapped to [0, 1); species = 1 + argmax of the allowed logits, the first of equals.
 * `move_at` nullable: two numbers where the arrays are, that stand for `drift` and `diffusion`. `noise` nullable: drawn by
 * `key`. `logits` nullable: species stay. `allowed` nullable: all.
 * A crystal with a number that is not finite keeps its state and gains NON_FINITE; one with a flat cell, SINGULAR. */
DRUSE_API int32_t druse_langevin(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals,
                                 const int64_t *offsets, const double *cells, double drift, double diffusion,
                                 const double *move_at, const float *score, const float *noise, int32_t n_species,
                                 const float *logits, const uint8_t *allowed, double *frac, int32_t *species,
                                 uint32_t *status);

/* z' = scale * (z - eps_scale * eps) + noise_scale * noise (eq. 4: scale = 1 / sqrt(alpha), eps_scale =
 * (1 - alpha) / sqrt(1 - alpha-bar)), float32. `noise` nullable: drawn by `key`, one row a crystal. */
DRUSE_API int32_t druse_ddpm(const druse_exec *exec, const druse_noise_key *key, int64_t n_crystals, int32_t width,
                             double scale, double eps_scale, double noise_scale, const float *eps, const float *noise,
                             float *z, uint32_t *status);

/* out = (a x + b y) / c in float32, each operation rounded. `y` nullable: a x / c. `out` may be x or y. */
DRUSE_API int32_t druse_combine(const druse_exec *exec, int64_t count, double a, const float *x, double b,
                                const float *y, double c, float *out);

/* counters[k] += by[k], modulo 2^32: steps that are replayed from memory count themselves. */
DRUSE_API int32_t druse_advance(const druse_exec *exec, int64_t count, const int32_t *by, uint32_t *counters);

/* ---- decoder geometry ------------------------------------------------------------------------------------------- */

/* out[e, k] = envelope(d) exp(-(d - mu_k)^2 / (2 delta^2)), d = distance / cutoff, mu_k = k delta,
 * delta = 1 / (n_radial - 1), envelope = 1 - 21 d^5 + 35 d^6 - 15 d^7 below 1, else 0. out: [n_edges, n_radial]. */
DRUSE_API int32_t druse_radial_basis(const druse_exec *exec, int64_t n_edges, const float *distance, double cutoff,
                                     int32_t n_radial, float *out);

/* out[n, i, l, j] = P_l(cos of the angle between edges i and j at atom n), 0 for padding and for i == j.
 * out: [n_atoms, degree_capacity, n_spherical, degree_capacity]; degree is clamped to the capacity. */
DRUSE_API int32_t druse_legendre(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity, int32_t n_spherical,
                                 const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit,
                                 float *out);

/* out[n] = sum over the edges into n of force[e] * unit[e], in the order of the table. force: [mirror + n_edges]. */
DRUSE_API int32_t druse_force_sum(const druse_exec *exec, int64_t n_atoms, int64_t degree_capacity,
                                  const int32_t *in_edge, const int32_t *degree, int64_t mirror, const float *unit,
                                  const float *force, float *out);

/* A graph of half edges with its incidence table, made up to fixed lengths without anybody knowing its own: of n_atoms
 * atoms those from offsets[n_crystals] on are not there, of n_edges half edges those from edge_offsets[n_crystals] on; the
 * last of each must not be (n_atoms > offsets[n_crystals], n_edges > edge_offsets[n_crystals]). Their edges run from the
 * last atom to itself at `cutoff`. `slot` leads to the last atom's row where an edge has no place. `mirror` of
 * druse_incidence is n_edges, its pad 2 n_edges - 1. met[b] gains those bits of status[b] that stop a crystal. */
typedef struct {
    int64_t n_crystals, n_atoms, n_edges, degree_capacity;
    double cutoff;
    int32_t *src, *dst; /* [n_edges] */
    float *distance;    /* [n_edges] */
    int32_t *in_edge;   /* [n_atoms, degree_capacity] */
    int32_t *degree;    /* [n_atoms] */
    int32_t *slot;      /* [2, n_edges] */
    float *valid;       /* [n_atoms, degree_capacity] out: 1 for an edge, 0 for none */
    const uint32_t *status; /* [n_crystals] */
    uint32_t *met;          /* [n_crystals] */
} druse_padded_graph;

DRUSE_API int32_t druse_pad_graph(const druse_exec *exec, const int64_t *offsets, const int64_t *edge_offsets,
                                  const druse_padded_graph *graph);

/* ---- sums over paths: two edges that meet at an atom ------------------------------------------------------------- */

/* CPU only so far, for training too. Sums of fused multiply-adds in one order: the same bytes on every instruction set
 * and any number of threads. */

/* At every atom, edges that get a sum ("rows") and edges that are summed. A pair of them counts unless their labels are
 * the same. */
typedef struct {
    int64_t n_atoms;
    int64_t n_edges;                       /* directed ones */
    int64_t row_capacity, sum_capacity;    /* widths of the tables */
    const int32_t *row_edge, *row_degree;  /* [n_atoms, row_capacity] and [n_atoms]: every edge at most once */
    const int32_t *sum_edge, *sum_degree;
    const int32_t *row_label, *sum_label;  /* [n_edges], not negative; nullable: the numbers of the edges */
    const float *unit;                     /* [mirror or n_edges, 3] */
    int64_t mirror;                        /* edge e has -unit[e - mirror] from there on; 0: all are stored */
} druse_paths;

/* DimeNet++: out[e, c] = sum over f and l of P_l(cos angle(e, f)) x[f, c] sum over n of spherical[f, l, n] weight[l, n, c].
 * spherical: [n_edges, n_spherical, n_radial]; weight: [n_spherical, n_radial, channels]; x, out: [n_edges, channels].
 * `channels` is a multiple of 16. Only rows of edges in the tables are written. */
DRUSE_API int32_t druse_path_sum(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical, int32_t n_radial,
                                 int32_t channels, const float *spherical, const float *weight, const float *x,
                                 float *out);

/* The gradients by weight and x of a number whose gradient by out is `given`. */
DRUSE_API int32_t druse_path_sum_gradient(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical,
                                          int32_t n_radial, int32_t channels, const float *spherical,
                                          const float *weight, const float *x, const float *given, float *of_weight,
                                          float *of_x);

/* GemNet-T: out[e, k, c] = sum over l of radial[e, k, l] sum over f of P_l(cos angle(e, f)) x[f, c].
 * radial: [mirror or n_edges, n_basis, n_spherical]; x: [n_edges, channels]; out: [n_edges, n_basis, channels]. */
DRUSE_API int32_t druse_triplet_sum(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical,
                                    int32_t n_basis, int32_t channels, const float *radial, const float *x, float *out);

/* The same for it; of_radial: [n_edges, n_basis, n_spherical], of a mirror apart from its edge. */
DRUSE_API int32_t druse_triplet_sum_gradient(const druse_exec *exec, const druse_paths *paths, int32_t n_spherical,
                                             int32_t n_basis, int32_t channels, const float *radial, const float *x,
                                             const float *given, float *of_radial, float *of_x);

/* ---- the prior's network ---------------------------------------------------------------------------------------- */

/* CPU only so far. Its arithmetic is fused multiply-adds in one order, the same bytes on every instruction set. */

#define DRUSE_PANEL 32 /* columns that are packed together */

/* A residual MLP shaped like a U-Net: n layers down, one in the middle, n up to the width of z, one out. Before its
 * activation layer i adds terms[row, i] + steps[step, i], `terms` and `steps` holding the widths of all layers side by
 * side; every layer but the last ends with max(., 0). What went into layer n - k on the way down is added to what comes
 * out of layer n + k, k from 0 (the middle), to be the next layer's input. */
typedef struct {
    int32_t n_layers;            /* 2 n + 2, at most 32 */
    int32_t latent;              /* width of z */
    const int32_t *widths;       /* [n_layers] of the outputs, multiples of DRUSE_PANEL */
    const float *const *weights; /* [n_layers] packed matrices */
    const float *steps;          /* [n_steps, sum of widths] */
    int32_t n_steps;
    int32_t reserved; /* 0 */
} druse_residual_mlp;

/* A matrix [n_in, n_out] as druse_residual_mlp takes it: n_in * n_out rounded up to whole panels. */
DRUSE_API int32_t druse_pack(int32_t n_in, int32_t n_out, const float *matrix, float *packed);

/* eps[row] = the network of z[row] at a step. z, eps: [n_rows, latent]; terms: [n_rows, sum of widths]. */
DRUSE_API int32_t druse_prior_eps(const druse_exec *exec, const druse_residual_mlp *net, int64_t n_rows, int32_t step,
                                  const float *z, const float *terms, float *eps);

/* The reverse process from first_step down to last_step, both included: druse_prior_eps and druse_ddpm in turns, with the
 * step in the place of the key's. scale, eps_scale, noise_scale: [n_steps], as in druse_ddpm; no draws where the last
 * is 0. */
DRUSE_API int32_t druse_prior_chain(const druse_exec *exec, const druse_residual_mlp *net, const druse_noise_key *key,
                                    int64_t n_rows, int32_t first_step, int32_t last_step, const double *scale,
                                    const double *eps_scale, const double *noise_scale, const float *terms, float *z,
                                    uint32_t *status);

/* ---- the score network ------------------------------------------------------------------------------------------ */

/* CPU only so far. The same bytes on every instruction set, whatever else is in the batch. */

/* GemNet-T as Druse exports it (formulation gemnet-t-1): a layer is y = x w, then y sigmoid(sharpness y) where its
 * sharpness is not 0. Matrices [n_in, n_out] are packed by druse_pack; the order of `weights` and `sharpness`:
 *   radial [n_radial, 3 rbf + cbf n_spherical + edge], elements [n_species, atom] and levels [n_levels, atom] (these two
 *   as they are), ends [atom, 2 edge], a force head; then for each block
 *     ba, gate [rbf, edge], down [edge, triplet], bilinear [cbf triplet, bilinear], ca, up_ca and up_ac [bilinear, edge],
 *     2 n_before_skip and 2 n_after_skip residual layers, atom_gate [rbf, edge], atom_dense [edge, atom],
 *     2 n_atom residual layers of atoms, ends, feature [edge, edge], 2 n_concat residual layers, a force head;
 *   then species [atom, n_species] and its bias as it is.
 * A force head is a layer, 2 n_atom residual layers and out [edge, rbf]. Two residual layers add to what they are given. */
typedef struct {
    int32_t atom, edge, triplet, bilinear; /* multiples of DRUSE_PANEL */
    int32_t rbf, cbf, n_radial, n_spherical;
    int32_t n_blocks, n_before_skip, n_after_skip, n_concat, n_atom;
    int32_t n_species, n_levels;
    int32_t reserved; /* 0 */
    double cutoff;    /* Angstrom */
    const float *const *weights;
    const float *sharpness;
    const float *factors; /* [n_blocks, 3] of what is added to edges at the skip, to atoms, and to edges at the end */
} druse_gemnet;

/* Crystals with their graph of half edges: arrays as of druse_radius_graph and druse_incidence. */
typedef struct {
    int64_t n_crystals, n_atoms, n_edges, degree_capacity, mirror; /* n_edges <= mirror */
    const int32_t *src, *dst;
    const float *distance, *unit;
    const int32_t *in_edge, *degree;
    const int32_t *crystal; /* [n_atoms] */
    const int32_t *species; /* [n_atoms], from 1 on */
    const float *latent;    /* [n_crystals, atom] */
    const int32_t *level;   /* [n_crystals] */
} druse_gemnet_batch;

/* score: [n_atoms, 3]; logits: [n_atoms, n_species]. Runs on the calling thread; give it a few hundred edges at a time, so
 * that their features stay in its cache, and call it from several threads. */
DRUSE_API int32_t druse_gemnet_score(const druse_exec *exec, const druse_gemnet *net, const druse_gemnet_batch *batch,
                                     float *score, float *logits);

#ifdef __cplusplus
}
#endif
#endif
