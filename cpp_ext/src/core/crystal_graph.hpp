// The periodic radius graph of one crystal by a team of threads: a block on a GPU, and any number of threads in tests. A
// warp takes a target atom at a time.
//
// A Team has thread(), threads(), warp(), warps(), lane(), lanes() (at most 32); sync() and sync_warp(), after which all of
// the block or the warp see what its threads have written; join(word, bits), which sets bits of a word of the block; and for
// a warp ballot(bool), sum, sum_wide, least, least_wide, pick(value, lane) and sum_before, over the lanes before. What lanes
// exchange by these orders nothing else.
//
// Results are those of cpu/graph_kernel.hpp, bit for bit, whatever the capacities. Three things make it fast. A first,
// shorter radius is searched that should hold the K nearest; only where it does not is the cutoff searched. A target's
// choice is kept as a few numbers (GraphAtom), by which any pair can be asked whether it is in that target's list, so that
// mirrors are not looked up. And what does not fit into the lists here is found again by a search that needs no memory.
#pragma once

#include "druse.h"
#include "images.hpp"

#if defined(__CUDACC__)
#define DRUSE_TEAM __device__ __forceinline__
#define DRUSE_ROLLED _Pragma("unroll 1")  // registers are scarcer than instructions,
#define DRUSE_RELOAD asm volatile("" ::: "memory")  // so what shared memory holds is not kept in them, either
#else
#define DRUSE_ROLLED
#define DRUSE_RELOAD
#define DRUSE_TEAM inline
#endif

namespace druse {

// Squared distances up to r2, from images no longer than sqrt(farthest2) and within a box.
struct GraphLevel {
    double farthest2;
    ImageBox box;
    float r2;
    int32_t reserved;
};

// What is known of a crystal before its atoms are.
struct PreparedCrystal {
    ReducedCell reduced;  // exact mode
    GraphLevel level[2];  // the last one is the cutoff
    int32_t n_levels;
    float error;     // of a float32 distance
    float cell[9];   // upstream mode
    uint32_t status;
};

DRUSE_TEAM int32_t bits_in(uint32_t word) {
#if defined(__CUDA_ARCH__)
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

DRUSE_TEAM int lowest_bit(uint32_t word) {  // of a word that is not 0
#if defined(__CUDA_ARCH__)
    return __ffs(static_cast<int>(word)) - 1;
#else
    return __builtin_ctz(word);
#endif
}

DRUSE_HD uint64_t bits_of_double(double value) {
    union {
        double d;
        uint64_t u;
    } word;
    word.d = value;
    return word.u;
}

DRUSE_HD double double_of_bits(uint64_t bits) {
    union {
        double d;
        uint64_t u;
    } word;
    word.u = bits;
    return word.d;
}

DRUSE_HD float cube_root(float x) {
    float y = float_of_bits(bits_of_float(x) / 3 + 709921077u);
    for (int round = 0; round < 3; ++round) y -= (y * y * y - x) / (3.0f * y * y);
    return y;
}

DRUSE_HD void prepare_crystal(const druse_graph_options &o, int64_t n, const double *cell, PreparedCrystal *p) {
    const bool exact = o.mode == DRUSE_MODE_EXACT;
    p->n_levels = 0;
    p->error = 0.0f;
    p->reduced.valid = false;
    for (int k = 0; k < 9; ++k) p->cell[k] = 0.0f;
    p->status = n == 0 ? static_cast<uint32_t>(DRUSE_STATUS_EMPTY) : 0u;
    if (n == 0) return;
    if (!all_within(cell, 9, kLargestCell)) {
        p->status = DRUSE_STATUS_NON_FINITE;
        return;
    }
    GraphLevel cutoff = {};
    if (!exact) {
        for (int k = 0; k < 9; ++k) p->cell[k] = static_cast<float>(cell[k]);
        const float radius = static_cast<float>(o.cutoff);
        cutoff.r2 = radius * radius;
        cutoff.farthest2 = __builtin_inf();
        cutoff.box.most[0] = cutoff.box.most[1] = cutoff.box.most[2] = 1;
        cutoff.box.size = 27;
        if (is_flat(cell))
            p->status = DRUSE_STATUS_SINGULAR;
        else if (image_bits(n, cutoff.box.size) < 0)
            p->status = DRUSE_STATUS_TOO_MANY_IMAGES;
        p->level[0] = cutoff;
        p->n_levels = 1;
        return;
    }
    p->reduced = reduce_cell(cell);
    const ReducedCell &r = p->reduced;
    if (!r.valid) {
        p->status = DRUSE_STATUS_SINGULAR;
        return;
    }
    const double farthest = farthest_image(r, o.cutoff);
    p->error = distance_error(r, farthest);
    const float reach = static_cast<float>(o.cutoff + kCutoffTolerance) + p->error;
    cutoff.r2 = reach * reach;
    cutoff.farthest2 = farthest * farthest;
    cutoff.box = image_box(r, o.cutoff + kCutoffTolerance);
    if (cutoff.box.size == 0) {
        p->status = DRUSE_STATUS_TOO_MANY_IMAGES;
        return;
    }
    // a sphere that holds 2.2 K atoms on average: enough for the K nearest and their shell in all but uneven crystals
    double normal[3];
    cross3(r.rows + 3, r.rows + 6, normal);
    const double volume = __builtin_fabs(dot3(r.rows, normal));
    const double wanted = 2.2 * static_cast<double>(o.max_neighbors) / static_cast<double>(n) * volume * 0.2387324146;
    const float near = wanted < 1e18 ? cube_root(static_cast<float>(wanted)) : 1e6f;
    const double error = static_cast<double>(p->error), within = static_cast<double>(near) + 2.0 * error + 1e-3;
    if (near > 0.1f && within < 0.95 * o.cutoff) {
        GraphLevel &level = p->level[0];
        level.r2 = near * near;
        level.farthest2 = (within + r.reach) * (within + r.reach);
        if (level.farthest2 > cutoff.farthest2) level.farthest2 = cutoff.farthest2;
        level.box = image_box(r, within);
        level.reserved = 0;
        p->n_levels = 1;
    }
    p->level[p->n_levels++] = cutoff;
}

// A target's choice, and what the block knows of the atom.
struct GraphAtom {
    double coordinate[3], translation[3];  // exact mode
    double farthest;                       // exact mode: distances up to this are in
    float position[3];                     // upstream mode
    float bound;                           // squared float32 distances up to this are in
    int32_t last_tie;                      // pairs at the border are in up to this key
    int32_t members;                       // keys in its slot; kRescan where they do not fit, kUndecided before
    uint32_t first_half, first_extra;      // counts, then places: half edges, and mirrors that only the other end chose
};

constexpr int32_t kRescan = -1, kUndecided = -2;

// An image of the list: its vector, and its place in the box of the cutoff.
struct alignas(16) GraphImage {
    float x, y, z;
    int32_t place;
};

struct alignas(16) GraphSource {
    float x, y, z, unused;
};

struct GraphTotals {
    int64_t at;  // of the crystal's first edge
    int32_t n_images;
    uint32_t status, undecided, fits;
};

// The block's memory. Arrays are [warps, capacity] where marked so, and may have any capacity from 1 on.
struct GraphMemory {
    PreparedCrystal *prepared;
    GraphTotals *totals;
    GraphImage *images;
    int32_t image_capacity;
    GraphSource *sources;  // by warp
    int32_t source_capacity;
    float *d2;      // by warp
    int32_t *keys;  // by warp
    int32_t candidate_capacity;
    double *distances;  // by warp
    int32_t distance_capacity;
    GraphAtom *atoms;  // [atom_capacity], for crystals of at most as many atoms; the others' are all in far_atoms
    int32_t atom_capacity;
    int32_t *slots;  // [slot_atoms, slot_capacity], keys of the first atoms; the others' are in far_slots
    int32_t slot_atoms, slot_capacity;
    GraphAtom *far_atoms;  // [n]
    int32_t *far_slots;    // [n, slot_capacity]
};

template <bool kExact>
struct GraphReal {
    typedef double type;
};
template <>
struct GraphReal<false> {
    typedef float type;
};

template <class Team, bool kExact>
struct CrystalGraphTeam {
    typedef typename GraphReal<kExact>::type Real;

    const Team &team;
    const GraphMemory &m;
    const druse_graph_options &o;
    const int32_t n;
    GraphAtom *const atoms;
    const PreparedCrystal &p;
    ImageBox box;  // of the cutoff: a pair's key is source * box.size + place
    bool listed;   // the list of images is whole

    DRUSE_TEAM CrystalGraphTeam(const Team &team_, const GraphMemory &memory, const druse_graph_options &options, int32_t n_)
        : team(team_), m(memory), o(options), n(n_), atoms(n_ <= memory.atom_capacity ? memory.atoms : memory.far_atoms),
          p(*memory.prepared), box(), listed(false) {}

    // False where keys would leave int32: a search of that many pairs would not end.
    DRUSE_TEAM bool begin() {
        box = p.level[p.n_levels - 1].box;
        return static_cast<int64_t>(n) * box.size <= INT32_MAX;
    }

    // ---- pairs ------------------------------------------------------------------------------------------------------

    struct Pair {
        Real vector[3];  // from the target to the image
        Real distance;
    };

    DRUSE_TEAM void split(int32_t key, int32_t *j, int32_t *place) const {
        const uint32_t k = static_cast<uint32_t>(key), size = static_cast<uint32_t>(box.size), atom = k / size;
        *j = static_cast<int32_t>(atom);
        *place = static_cast<int32_t>(k - atom * size);
    }

    DRUSE_TEAM void shift_of(const int32_t *number, Real *shift) const {
        const Real a = static_cast<Real>(number[0]), b = static_cast<Real>(number[1]), c = static_cast<Real>(number[2]);
        for (int k = 0; k < 3; ++k) {
            if constexpr (kExact)
                shift[k] = combine(a, b, c, p.reduced.rows[k], p.reduced.rows[3 + k], p.reduced.rows[6 + k]);
            else
                shift[k] = combine(a, b, c, p.cell[k], p.cell[3 + k], p.cell[6 + k]);
        }
    }

    // exact mode: the whole cells between two atoms that make their difference the shortest
    DRUSE_TEAM void minimum_image(int32_t i, int32_t j, Real *vector, Real *whole) const {
        Real f[3];
        for (int k = 0; k < 3; ++k) {
            const Real difference = atoms[j].coordinate[k] - atoms[i].coordinate[k];
            whole[k] = nearest_integer(difference);
            f[k] = difference - whole[k];
        }
        for (int k = 0; k < 3; ++k)
            vector[k] = combine(f[0], f[1], f[2], p.reduced.rows[k], p.reduced.rows[3 + k], p.reduced.rows[6 + k]);
    }

    DRUSE_TEAM GraphSource source_of(int32_t i, int32_t j) const {
        GraphSource s;
        if constexpr (kExact) {
            Real vector[3], whole[3];
            minimum_image(i, j, vector, whole);
            s.x = static_cast<float>(vector[0]), s.y = static_cast<float>(vector[1]), s.z = static_cast<float>(vector[2]);
        } else {
            s.x = atoms[j].position[0], s.y = atoms[j].position[1], s.z = atoms[j].position[2];
        }
        s.unused = 0.0f;
        return s;
    }

    // As CDVAE does, the image's shift is added to the source first.
    DRUSE_TEAM float squared(const float *centre, const GraphSource &s, float x, float y, float z) const {
        const float dx = centre[0] - (s.x + x), dy = centre[1] - (s.y + y), dz = centre[2] - (s.z + z);
        return sum_of_squares(dx, dy, dz);
    }

    DRUSE_TEAM void centre_of(int32_t i, float *centre) const {
        for (int k = 0; k < 3; ++k) {
            if constexpr (kExact)
                centre[k] = 0.0f;
            else
                centre[k] = atoms[i].position[k];
        }
    }

    DRUSE_TEAM float squared_distance(int32_t i, int32_t j, const Real *shift) const {
        float centre[3];
        centre_of(i, centre);
        return squared(centre, source_of(i, j), static_cast<float>(shift[0]), static_cast<float>(shift[1]),
                       static_cast<float>(shift[2]));
    }

    DRUSE_TEAM Pair pair_of(int32_t i, int32_t j, int32_t place) const {
        DRUSE_RELOAD;
        int32_t number[3];
        Real shift[3];
        Pair pair;
        if constexpr (kExact) {
            Real source[3], whole[3];
            minimum_image(i, j, source, whole);
            DRUSE_RELOAD;
            image_at(box, place, number);
            shift_of(number, shift);
            for (int k = 0; k < 3; ++k) pair.vector[k] = source[k] + shift[k];
            pair.distance = __builtin_sqrt(sum_of_squares(pair.vector[0], pair.vector[1], pair.vector[2]));
        } else {
            image_at(box, place, number);
            shift_of(number, shift);
            for (int k = 0; k < 3; ++k) pair.vector[k] = (atoms[j].position[k] - atoms[i].position[k]) + shift[k];
            pair.distance = __builtin_sqrtf(sum_of_squares(pair.vector[0], pair.vector[1], pair.vector[2]));
        }
        return pair;
    }

    // In the cell and for the coordinates that were given.
    DRUSE_TEAM void given_image(int32_t i, int32_t j, int32_t place, int32_t *image) const {
        DRUSE_RELOAD;
        int32_t number[3];
        image_at(box, place, number);
        if constexpr (kExact) {
            const double a = number[0], b = number[1], c = number[2];
            double vector[3], whole[3];
            minimum_image(i, j, vector, whole);
            const double *t = p.reduced.transform;
            for (int k = 0; k < 3; ++k) {
                const double of_source = (atoms[j].translation[k] - atoms[i].translation[k]) -
                                         combine(whole[0], whole[1], whole[2], t[k], t[3 + k], t[6 + k]);
                image[k] = static_cast<int32_t>(of_source) + static_cast<int32_t>(combine(a, b, c, t[k], t[3 + k], t[6 + k]));
            }
        } else {
            for (int k = 0; k < 3; ++k) image[k] = number[k];
        }
    }

    struct Candidate {
        bool valid;
        float d2;
        int32_t key;
    };

    // Any pair at all, by its key: is it within the cutoff?
    DRUSE_TEAM Candidate candidate_of(int32_t i, int32_t key) const {
        DRUSE_RELOAD;
        const GraphLevel &cutoff = p.level[p.n_levels - 1];
        int32_t j;
        int32_t place, number[3];
        Real shift[3];
        split(key, &j, &place);
        image_at(box, place, number);
        shift_of(number, shift);
        Candidate c;
        c.key = key;
        c.d2 = squared_distance(i, j, shift);
        c.valid = c.d2 > kCoincident2 && c.d2 <= cutoff.r2;
        if constexpr (kExact) c.valid = c.valid && sum_of_squares(shift[0], shift[1], shift[2]) <= cutoff.farthest2;
        return c;
    }

    // Whether a pair within the cutoff is in a target's list; `distance` decides in exact mode only.
    DRUSE_TEAM bool chosen_by(const GraphAtom &target, float d2, Real distance, int32_t key) const {
        if (!(d2 <= target.bound)) return false;
        if constexpr (kExact)
            return distance < target.farthest || (distance == target.farthest && key <= target.last_tie);
        else
            return d2 < target.bound || key <= target.last_tie;
    }

    // Whether the source of a pair that its target has chosen has chosen the target, too.
    DRUSE_TEAM bool chosen_back(int32_t i, int32_t j, int32_t place) const {
        DRUSE_RELOAD;
        const int32_t mirrored = box.size - 1 - place;
        const int32_t key = i * box.size + mirrored;
        int32_t number[3];
        Real shift[3];
        image_at(box, mirrored, number);
        shift_of(number, shift);
        const float d2 = squared_distance(j, i, shift);
        if (!(d2 > kCoincident2 && d2 <= p.level[p.n_levels - 1].r2)) return false;
        Real distance = 0;
        if constexpr (kExact) distance = pair_of(j, i, mirrored).distance;
        return chosen_by(atoms[j], d2, distance, key);
    }

    // ---- searches: visit(valid, d2, key) is called by all lanes at once ---------------------------------------------------

    template <class Visit>
    DRUSE_TEAM void search_list(int32_t i, Visit visit) const {
        const int lanes = team.lanes();
        const int32_t n_images = m.totals->n_images;
        GraphSource *sources = m.sources + team.warp() * m.source_capacity;
        float centre[3];
        centre_of(i, centre);
        const int32_t step_j = lanes / n_images, step_m = lanes % n_images;
        DRUSE_ROLLED
        for (int32_t first = 0; first < n; first += m.source_capacity) {
            const int32_t count = static_cast<int32_t>(n - first < m.source_capacity ? n - first : m.source_capacity);
            team.sync_warp();
            for (int32_t j = team.lane(); j < count; j += lanes) sources[j] = source_of(i, first + j);
            team.sync_warp();
            const int32_t total = count * n_images;
            int32_t j = team.lane() / n_images, k = team.lane() % n_images;
            DRUSE_ROLLED
            for (int32_t start = 0; start < total; start += lanes) {
                const bool valid = start + team.lane() < total;
                float d2 = 0.0f;
                int32_t key = 0;
                if (valid) {
                    const GraphImage image = m.images[k];
                    d2 = squared(centre, sources[j], image.x, image.y, image.z);
                    key = (first + j) * box.size + image.place;
                }
                visit(valid, d2, key);
                j += step_j;
                k += step_m;
                if (k >= n_images) k -= n_images, ++j;
            }
        }
    }

    template <class Visit>
    DRUSE_TEAM void search_box(int32_t i, Visit visit) const {
        const int32_t total = n * box.size;
        DRUSE_ROLLED
        for (int32_t start = 0; start < total; start += team.lanes()) {
            Candidate c = {false, 0.0f, 0};
            if (start + team.lane() < total) c = candidate_of(i, start + team.lane());
            visit(c.valid, c.d2, c.key);
        }
    }

    // The candidates of a warp's target: in its list, or to be searched again.
    struct Candidates {
        int32_t i;
        uint32_t count;
        float *d2;
        int32_t *keys;
        double *distances;
        bool stored;
    };

    template <class Visit>
    DRUSE_TEAM void each(const Candidates &c, Visit visit) const {
        const int32_t total = c.stored ? c.count : n * box.size;
        DRUSE_ROLLED
        for (int32_t start = 0; start < total; start += team.lanes()) {
            const int32_t e = start + team.lane();
            Candidate one = {false, 0.0f, 0};
            if (e < total) {
                if (c.stored)
                    one.valid = true, one.d2 = c.d2[e], one.key = c.keys[e];
                else
                    one = candidate_of(c.i, e);
            }
            visit(one);
        }
    }

    // exact mode: those that float32 cannot rule out, and their distances
    template <class Visit>
    DRUSE_TEAM void each_doubtful(const Candidates &c, float bound, Visit visit) const {
        const int32_t total = c.stored ? c.count : n * box.size;
        DRUSE_ROLLED
        for (int32_t start = 0; start < total; start += team.lanes()) {
            const int32_t e = start + team.lane();
            bool valid = false;
            double distance = 0.0;
            int32_t key = 0;
            if (e < total && c.stored) {
                valid = true, distance = c.distances[e], key = c.keys[e];
            } else if (e < total) {
                const Candidate one = candidate_of(c.i, e);
                valid = one.valid && one.d2 <= bound, key = one.key;
                if (valid) distance = distance_of(c.i, key);
            }
            visit(valid, distance, key);
        }
    }

    DRUSE_TEAM double distance_of(int32_t i, int32_t key) const {
        int32_t j;
        int32_t place;
        split(key, &j, &place);
        return static_cast<double>(pair_of(i, j, place).distance);
    }

    // ---- the K-th smallest --------------------------------------------------------------------------------------------

    // Counts fit 32 bits: image_bits refuses more pairs.
    struct Tally {
        uint32_t up_to, next;  // how many are not larger, and the bits of the smallest that is
    };

    struct ExactTally {
        uint32_t up_to;
        uint64_t next;
    };

    DRUSE_TEAM Tally tally(const Candidates &c, float bound) const {
        uint32_t up_to = 0, next = bits_of_float(__builtin_inff());
        each(c, [&](const Candidate &one) {
            if (!one.valid) return;
            if (one.d2 <= bound)
                ++up_to;
            else if (bits_of_float(one.d2) < next)
                next = bits_of_float(one.d2);
        });
        return Tally{team.sum(up_to), team.least(next)};
    }

    // Of more than K, none above `largest`. Bisects the bits of the floats, guided by the counts, then walks up.
    DRUSE_TEAM float kth_smallest(const Candidates &c, uint32_t k, float largest) const {
        uint32_t low = bits_of_float(kCoincident2), high = bits_of_float(largest);  // count(low) < k <= count(high)
        uint32_t below = 0, up_to = c.count, next = 0;
        bool known = false;  // next is the smallest above low
        DRUSE_ROLLED
        for (int round = 0; up_to - below > 4 && high - low > 1; ++round) {
            uint32_t middle = low + (high - low) / 2;
            if (round % 2 == 0) {  // as if squared distances were spread evenly over the bracket
                const float a = float_of_bits(low), b = float_of_bits(high);
                const float share = (static_cast<float>(k - below) + 1.0f) / (static_cast<float>(up_to - below) + 2.0f);
                const uint32_t guess = bits_of_float(a + (b - a) * share);
                if (guess > low && guess < high) middle = guess;
            }
            const Tally t = tally(c, float_of_bits(middle));
            if (t.up_to < k) {
                low = middle, below = t.up_to, next = t.next, known = true;
            } else {
                high = middle, up_to = t.up_to;
            }
        }
        if (high - low <= 1) return float_of_bits(high);
        if (!known) next = tally(c, float_of_bits(low)).next;
        DRUSE_ROLLED
        for (;;) {
            const float value = float_of_bits(next);
            const Tally t = tally(c, value);
            if (t.up_to >= k || !(value < largest)) return value;
            next = t.next;
        }
    }

    DRUSE_TEAM ExactTally tally_exactly(const Candidates &c, float bound, double limit) const {
        uint32_t up_to = 0;
        uint64_t next = bits_of_double(__builtin_inf());
        each_doubtful(c, bound, [&](bool valid, double distance, int32_t) {
            if (!valid) return;
            if (distance <= limit)
                ++up_to;
            else if (bits_of_double(distance) < next)
                next = bits_of_double(distance);
        });
        return ExactTally{team.sum(up_to), team.least_wide(next)};
    }

    // The key of the wanted-th, counted from 1, of those that a warp's lanes mark in order of keys.
    struct Ties {
        uint32_t wanted, seen;
        int32_t key;
    };

    DRUSE_TEAM void mark(Ties *ties, bool equal, int32_t key) const {
        const uint32_t found = team.ballot(equal);
        const uint32_t count = static_cast<uint32_t>(bits_in(found));
        if (ties->seen < ties->wanted && ties->wanted <= ties->seen + count) {
            const bool mine = equal && ties->seen + static_cast<uint32_t>(rank_in(found)) + 1 == ties->wanted;
            ties->key = team.pick(key, lowest_bit(team.ballot(mine)));
        }
        ties->seen += count;
    }

    DRUSE_TEAM int32_t rank_in(uint32_t lanes) const {
        return bits_in(lanes & ((1u << team.lane()) - 1u));
    }

    // ---- a target's choice ------------------------------------------------------------------------------------------------

    DRUSE_TEAM int32_t *slot_of(int32_t i) const {
        return i < m.slot_atoms ? m.slots + i * m.slot_capacity : m.far_slots + i * m.slot_capacity;
    }

    DRUSE_TEAM void choose(int32_t i, int level) const {
        const float r2 = p.level[level].r2;
        const bool last = level + 1 == p.n_levels;
        const uint32_t k_wanted = static_cast<uint32_t>(o.max_neighbors);
        Candidates c;
        c.i = i;
        c.count = 0;
        c.d2 = m.d2 + team.warp() * m.candidate_capacity;
        c.keys = m.keys + team.warp() * m.candidate_capacity;
        c.distances = m.distances + team.warp() * m.distance_capacity;
        uint32_t coincident = 0;
        team.sync_warp();
        const auto enter = [&](bool valid, float d2, int32_t key) {
            const bool within = valid && d2 <= r2, distinct = d2 > kCoincident2;
            if (within && !distinct) ++coincident;
            const uint32_t found = team.ballot(within && distinct);
            const uint32_t at = c.count + static_cast<uint32_t>(rank_in(found));
            if (within && distinct && at < static_cast<uint32_t>(m.candidate_capacity))
                c.d2[at] = d2, c.keys[at] = key;
            c.count += static_cast<uint32_t>(bits_in(found));
        };
        if (listed)
            search_list(i, enter);
        else
            search_box_all(i, enter);
        if (team.sum(coincident) > 1) report(DRUSE_STATUS_COINCIDENT);  // the atom with itself is one
        const uint32_t found = c.count;
        c.stored = found <= static_cast<uint32_t>(m.candidate_capacity);
        if (!last && !(found > k_wanted && c.stored)) return;  // the next level decides
        team.sync_warp();

        float bound = __builtin_inff();
        double farthest = o.cutoff + kCutoffTolerance;
        int32_t last_tie = INT32_MAX;
        uint32_t members = 0;
        if constexpr (kExact) {
            const double tolerance = o.shell_tolerance > 0.0 ? o.shell_tolerance : 0.0;
            Doubt doubt = {};
            double kth32 = 0.0;
            if (found > k_wanted) {
                kth32 = static_cast<double>(__builtin_sqrtf(kth_smallest(c, k_wanted, r2)));
                doubt = doubt_of(kth32, tolerance, p.error);
                bound = doubt.bound;
                if (!last && !(bound <= r2)) return;
            }
            // what float32 cannot rule out ...
            uint32_t chosen = found;
            if (c.stored)
                chosen = keep_up_to(&c, bound);
            else if (found > k_wanted)
                chosen = tally(c, bound).up_to;
            // ... float64 decides
            if (chosen > k_wanted) {
                uint32_t doubtful = 0;
                each_doubtful(c, bound, [&](bool valid, double distance, int32_t) {
                    if (valid && distance > doubt.sure && distance <= doubt.excluded) ++doubtful;
                });
                double kth = kth32;
                if (o.shell_tolerance < 0.0 || team.sum(doubtful) > 0) {
                    ExactTally t = tally_exactly(c, bound, kth32 - 2.0 * static_cast<double>(p.error));
                    if (t.up_to >= k_wanted) t = tally_exactly(c, bound, -1.0);
                    uint32_t below = t.up_to;
                    DRUSE_ROLLED
                    for (;;) {
                        kth = double_of_bits(t.next);
                        t = tally_exactly(c, bound, kth);
                        if (t.up_to >= k_wanted) break;
                        below = t.up_to;
                    }
                    if (o.shell_tolerance < 0.0 && kth <= farthest) {
                        Ties ties = {k_wanted - below, 0, INT32_MAX};
                        each_doubtful(c, bound, [&](bool valid, double distance, int32_t key) {
                            mark(&ties, valid && distance == kth, key);
                        });
                        last_tie = ties.key;
                    }
                }
                if (kth + tolerance < farthest) farthest = kth + tolerance;
            }
        } else if (found > k_wanted) {
            bound = kth_smallest(c, k_wanted, r2);
            const uint32_t below = tally(c, float_of_bits(bits_of_float(bound) - 1)).up_to;
            Ties ties = {k_wanted - below, 0, INT32_MAX};
            each(c, [&](const Candidate &one) { mark(&ties, one.valid && one.d2 == bound, one.key); });
            last_tie = ties.key;
        }

        GraphAtom choice;
        choice.bound = bound, choice.farthest = farthest, choice.last_tie = last_tie;
        const auto admit = [&](bool in, int32_t key) {
            const uint32_t admitted = team.ballot(in);
            const uint32_t at = members + static_cast<uint32_t>(rank_in(admitted));
            if (in && c.stored && at < static_cast<uint32_t>(m.slot_capacity)) slot_of(i)[at] = key;
            members += static_cast<uint32_t>(bits_in(admitted));
        };
        if constexpr (kExact)
            each_doubtful(c, bound, [&](bool valid, double distance, int32_t key) {
                admit(valid && chosen_by(choice, 0.0f, distance, key), key);
            });
        else
            each(c, [&](const Candidate &one) { admit(one.valid && chosen_by(choice, one.d2, 0, one.key), one.key); });
        if (members == 0) report(DRUSE_STATUS_ISOLATED);
        if (team.lane() == 0) {
            GraphAtom &target = atoms[i];
            target.bound = bound;
            target.farthest = farthest;
            target.last_tie = last_tie;
            target.first_half = members;
            target.first_extra = 0;
            target.members = c.stored && members <= static_cast<uint32_t>(m.slot_capacity) ? static_cast<int32_t>(members)
                                                                                           : kRescan;
        }
        team.sync_warp();
    }

    // Pairs that coincide are counted too, so all that the cutoff's images reach are visited.
    template <class Visit>
    DRUSE_TEAM void search_box_all(int32_t i, Visit visit) const {
        const GraphLevel &cutoff = p.level[p.n_levels - 1];
        const int32_t total = n * box.size;
        DRUSE_ROLLED
        for (int32_t start = 0; start < total; start += team.lanes()) {
            bool valid = start + team.lane() < total;
            Candidate c = {false, 0.0f, 0};
            if (valid) {
                c = candidate_of(i, start + team.lane());
                valid = c.d2 <= cutoff.r2;
                if constexpr (kExact) valid = valid && image_counts(c.key);
            }
            visit(valid, c.d2, c.key);
        }
    }

    DRUSE_TEAM bool image_counts(int32_t key) const {
        int32_t j;
        int32_t place, number[3];
        Real shift[3];
        split(key, &j, &place);
        image_at(box, place, number);
        shift_of(number, shift);
        return sum_of_squares(shift[0], shift[1], shift[2]) <= p.level[p.n_levels - 1].farthest2;
    }

    // exact mode: leaves the candidates up to a bound in the list, with their distances, or says that they do not fit
    DRUSE_TEAM uint32_t keep_up_to(Candidates *c, float bound) const {
        const uint32_t lanes = static_cast<uint32_t>(team.lanes());
        uint32_t kept = 0;
        DRUSE_ROLLED
        for (uint32_t start = 0; start < c->count; start += lanes) {
            const uint32_t e = start + static_cast<uint32_t>(team.lane());
            const bool in = e < c->count && c->d2[e] <= bound;
            const int32_t key = in ? c->keys[e] : 0;
            const uint32_t kept_here = team.ballot(in);
            team.sync_warp();
            if (in) c->keys[kept + static_cast<uint32_t>(rank_in(kept_here))] = key;
            kept += static_cast<uint32_t>(bits_in(kept_here));
        }
        team.sync_warp();
        if (kept > static_cast<uint32_t>(m.distance_capacity)) {
            c->stored = false;
            return kept;
        }
        c->count = kept;
        DRUSE_ROLLED
        for (uint32_t e = static_cast<uint32_t>(team.lane()); e < kept; e += lanes) c->distances[e] = distance_of(c->i, c->keys[e]);
        team.sync_warp();
        return kept;
    }

    DRUSE_TEAM void report(uint32_t bit) const {
        if (team.lane() == 0) team.join(&m.totals->status, bit);
    }

    // ---- the crystal ------------------------------------------------------------------------------------------------------

    DRUSE_TEAM void load_atoms(const double *frac) const {
        uint32_t trouble = 0;
        DRUSE_ROLLED
        for (int32_t i = team.thread(); i < n; i += team.threads()) {
            double given[3], coordinate[3] = {}, translation[3] = {};
            for (int k = 0; k < 3; ++k) given[k] = frac[3 * i + k];
            if (!all_within(given, 3, kLargestFraction)) {
                trouble |= DRUSE_STATUS_NON_FINITE;
                continue;
            }
            GraphAtom &atom = atoms[i];
            atom.members = kUndecided;
            if constexpr (kExact) {
                if (p.reduced.valid && !wrap_atom(p.reduced, given, coordinate, translation)) trouble |= DRUSE_STATUS_SINGULAR;
                for (int k = 0; k < 3; ++k) atom.coordinate[k] = coordinate[k], atom.translation[k] = translation[k];
            } else {
                const float a = static_cast<float>(given[0]), b = static_cast<float>(given[1]),
                            c = static_cast<float>(given[2]);
                for (int k = 0; k < 3; ++k) atom.position[k] = combine(a, b, c, p.cell[k], p.cell[3 + k], p.cell[6 + k]);
            }
        }
        if (trouble != 0) team.join(&m.totals->status, trouble);
    }

    // The images of a level, in order, by the first warp.
    DRUSE_TEAM void list_images(int level) const {
        const GraphLevel &l = p.level[level];
        int32_t count = 0;
        DRUSE_ROLLED
        for (int32_t start = 0; start < l.box.size; start += team.lanes()) {
            const int32_t e = start + team.lane();
            int32_t number[3];
            Real shift[3] = {};
            bool in = e < l.box.size;
            if (in) {
                image_at(l.box, e, number);
                shift_of(number, shift);
                if constexpr (kExact) in = sum_of_squares(shift[0], shift[1], shift[2]) <= l.farthest2;
            }
            const uint32_t found = team.ballot(in);
            const int32_t at = count + rank_in(found);
            if (in && at < m.image_capacity) {
                GraphImage &image = m.images[at];
                image.x = static_cast<float>(shift[0]);
                image.y = static_cast<float>(shift[1]);
                image.z = static_cast<float>(shift[2]);
                image.place = ((number[0] + box.most[0]) * (2 * box.most[1] + 1) + number[1] + box.most[1]) *
                                  (2 * box.most[2] + 1) +
                              number[2] + box.most[2];
            }
            count += bits_in(found);
        }
        if (team.lane() == 0) m.totals->n_images = count <= m.image_capacity ? count : 0;  // 0: the list is not whole
    }

    // Whether more images are in reach than the CPU would list: asked only where the box is that large.
    DRUSE_TEAM bool too_many_images() const {
        if (box.size <= kMaxImages && image_bits(n, box.size) >= 0) return false;
        uint32_t count = 0;
        DRUSE_ROLLED
        for (int32_t start = 0; start < box.size; start += team.lanes())
            if (start + team.lane() < box.size && image_counts(start + team.lane())) ++count;
        count = team.sum(count);
        return count > kMaxImages || image_bits(n, count) < 0;
    }

    // ---- edges ------------------------------------------------------------------------------------------------------------

    // Half edges and extra ones of target i: counted, or written from the places that the counts gave.
    DRUSE_TEAM void edges_of(int32_t i, const druse_edges *out, int64_t first_atom) const {
        GraphAtom &target = atoms[i];
        const bool whole = o.symmetrise == DRUSE_SYMMETRISE_NONE, unite = o.symmetrise == DRUSE_SYMMETRISE_UNION;
        if (out == nullptr && whole) return;  // counted by choose
        int32_t half = 0, extra = 0;  // they fit int32: so do the pairs of a crystal, and places that are written
        if (out != nullptr) {
            const int32_t at = static_cast<int32_t>(m.totals->at);
            half = at + static_cast<int32_t>(target.first_half);
            extra = at + static_cast<int32_t>(target.first_extra);
        }
        int32_t *slot = slot_of(i);
        const int32_t members = target.members;
        int32_t kept = 0;
        // is_half and is_extra, by all lanes at once
        const auto take = [&](bool is_half, bool is_extra, int32_t j, int32_t place, int32_t key) {
            const uint32_t halves = team.ballot(is_half), extras = unite ? team.ballot(is_extra) : 0u;
            if (out != nullptr) {
                if (is_half) write_edge(*out, half + rank_in(halves), first_atom, i, j, place, false);
                if (is_extra) write_edge(*out, extra + rank_in(extras), first_atom, i, j, place, true);
            } else if (members >= 0) {  // the slot keeps only what is an edge; a negative key is an extra one
                team.sync_warp();
                if (is_half || is_extra)
                    slot[kept + rank_in(halves | extras)] = is_half ? key : ~key;
                kept += bits_in(halves | extras);
            }
            half += bits_in(halves);
            extra += bits_in(extras);
        };
        const auto judge = [&](int32_t j, int32_t place, bool *is_half, bool *is_extra) {
            *is_half = whole;
            if (!whole) {
                int32_t image[3] = {};
                if (j == i) given_image(i, j, place, image);
                *is_half = is_half_edge(j, i, image);
                *is_extra = unite && !*is_half && !chosen_back(i, j, place);
            }
        };
        team.sync_warp();
        if (members >= 0) {
            DRUSE_ROLLED
            for (int32_t start = 0; start < members; start += team.lanes()) {
                const int32_t e = start + team.lane();
                bool is_half = false, is_extra = false;
                int32_t j = 0, key = 0;
                int32_t place = 0;
                if (e < members) {
                    key = slot[e];
                    const bool mirrored = key < 0;
                    split(mirrored ? ~key : key, &j, &place);
                    if (out == nullptr)
                        judge(j, place, &is_half, &is_extra);
                    else
                        is_half = !mirrored, is_extra = mirrored;
                }
                take(is_half, is_extra, j, place, key);
            }
        } else {
            const auto look = [&](bool valid, float d2, int32_t key) {
                bool is_half = false, is_extra = false;
                int32_t j = 0;
                int32_t place = 0;
                if (valid && d2 > kCoincident2 && d2 <= p.level[p.n_levels - 1].r2) {
                    split(key, &j, &place);
                    const Real distance = kExact ? pair_of(i, j, place).distance : 0;
                    if (chosen_by(target, d2, distance, key)) judge(j, place, &is_half, &is_extra);
                }
                take(is_half, is_extra, j, place, key);
            };
            if (listed)
                search_list(i, look);
            else
                search_box(i, look);
        }
        if (out == nullptr) {
            team.sync_warp();
            if (team.lane() == 0) {
                target.first_half = static_cast<uint32_t>(half);
                target.first_extra = static_cast<uint32_t>(extra);
                if (members >= 0) target.members = kept;
            }
        }
    }

    DRUSE_TEAM void write_edge(const druse_edges &out, int64_t at, int64_t first_atom, int32_t i, int32_t j, int32_t place,
                               bool mirrored) const {
        const Pair pair = pair_of(i, j, place);
        int32_t image[3];
        given_image(i, j, place, image);
        out.src[at] = static_cast<int32_t>(first_atom + (mirrored ? i : j));
        out.dst[at] = static_cast<int32_t>(first_atom + (mirrored ? j : i));
        out.distance[at] = static_cast<float>(pair.distance);
        for (int k = 0; k < 3; ++k) {
            const float unit = static_cast<float>(pair.vector[k] / -pair.distance);
            out.image[3 * at + k] = mirrored ? -image[k] : image[k];
            out.unit[3 * at + k] = mirrored ? -unit : unit;
        }
    }

    // Counts become places; the first warp's work. Returns the crystal's number of edges.
    DRUSE_TEAM int64_t place_edges() const {
        int64_t half = 0, extra = 0;
        DRUSE_ROLLED
        for (int32_t start = 0; start < n; start += team.lanes()) {
            const int32_t i = start + team.lane();
            const int64_t count = i < n ? atoms[i].first_half : 0, place = half + team.sum_before(count);
            if (i < n) atoms[i].first_half = static_cast<uint32_t>(place);  // read only where all fit into int32
            half += team.sum_wide(count);
        }
        DRUSE_ROLLED
        for (int32_t start = 0; start < n; start += team.lanes()) {  // extra edges come after all half edges
            const int32_t i = start + team.lane();
            const int64_t count = i < n ? atoms[i].first_extra : 0, place = half + extra + team.sum_before(count);
            if (i < n) atoms[i].first_extra = static_cast<uint32_t>(place);
            extra += team.sum_wide(count);
        }
        return half + extra;
    }
};

// ---- the batch ------------------------------------------------------------------------------------------------------------

// Where crystals say how many edges they have, and where they end. A word is 0 until then; its upper two bits say which.
constexpr uint64_t kLedgerCount = 1ull << 62, kLedgerUsed = 2ull << 62, kLedgerValue = kLedgerCount - 1;

DRUSE_TEAM uint64_t peek(const uint64_t *word) {
#if defined(__CUDA_ARCH__)
    return *static_cast<const volatile uint64_t *>(word);
#else
    return __atomic_load_n(word, __ATOMIC_RELAXED);
#endif
}

DRUSE_TEAM void post(uint64_t *word, uint64_t value) {
#if defined(__CUDA_ARCH__)
    *static_cast<volatile uint64_t *>(word) = value;
#else
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
#endif
}

// Places of the batch's edges that the crystals before b use, found by one warp (Merrill and Garland's decoupled look-back):
// counts are summed back to the nearest crystal that knows where it ends. Where their sum does not fit, one of them has
// written nothing, and only the one before knows. Crystals must be begun in order.
template <class Team>
DRUSE_TEAM int64_t claim(const Team &team, uint64_t *ledger, int64_t b, int64_t count, int64_t capacity, bool *fits) {
    constexpr int kEach = 4;
    const int lanes = team.lanes(), lane = team.lane();
    int64_t before = 0;
    if (b > 0) {
        if (lane == 0) post(ledger + b, kLedgerCount | static_cast<uint64_t>(count));
        const uint32_t none = 0xffffffffu;
        uint32_t nearest = none;
        DRUSE_ROLLED
        for (int64_t end = b - 1; nearest == none;) {
            uint64_t words[kEach];
            for (int w = 0; w < kEach; ++w) {
                const int64_t other = end - lane - w * lanes;
                words[w] = other < 0 ? kLedgerUsed : peek(ledger + other);
            }
            for (int w = kEach - 1; w >= 0; --w)
                if ((words[w] & ~kLedgerValue) == kLedgerUsed) nearest = static_cast<uint32_t>(lane + w * lanes);
            nearest = team.least(nearest);
            bool silent = false;
            for (int w = 0; w < kEach; ++w)
                silent |= words[w] == 0 && static_cast<uint32_t>(lane + w * lanes) < nearest;
            if (team.ballot(silent) != 0) {
                nearest = none;
                team.pause();
                continue;
            }
            int64_t part = 0;
            for (int w = 0; w < kEach; ++w)
                if (static_cast<uint32_t>(lane + w * lanes) <= nearest)
                    part += static_cast<int64_t>(words[w] & kLedgerValue);
            before += team.sum_wide(part);
            end -= kEach * lanes;
        }
        if (before > capacity) {
            uint64_t word = 0;
            while ((word & ~kLedgerValue) != kLedgerUsed) {
                word = peek(ledger + b - 1);
                team.pause();
            }
            before = static_cast<int64_t>(word & kLedgerValue);
        }
    }
    *fits = count <= capacity - before;
    if (lane == 0) post(ledger + b, kLedgerUsed | static_cast<uint64_t>(before + (*fits ? count : 0)));
    return before;
}

// Crystal b of n atoms from first_atom on; `has_far` says whether the memory for large crystals holds it.
template <class Team, bool kExact>
DRUSE_TEAM void graph_of_crystal(const Team &team, const GraphMemory &m, const druse_graph_options &o, int64_t b,
                                 int64_t first_atom, int32_t n, bool has_far, const double *frac, uint64_t *ledger,
                                 const druse_edges &out) {
    if (team.thread() == 0) *m.totals = GraphTotals();
    team.sync();
    CrystalGraphTeam<Team, kExact> graph(team, m, o, n);
    const PreparedCrystal &p = *m.prepared;
    if (has_far) graph.load_atoms(frac);
    team.sync();
    uint32_t status = m.totals->status;
    if (n == 0)
        status = DRUSE_STATUS_EMPTY;
    else if (!has_far)
        status = DRUSE_STATUS_OUT_OF_MEMORY;
    else if ((status & DRUSE_STATUS_NON_FINITE) != 0)
        status = DRUSE_STATUS_NON_FINITE;
    else if (status == 0)
        status = p.status;
    if (status == 0) {
        const bool within_keys = graph.begin();
        if (graph.too_many_images())
            status = DRUSE_STATUS_TOO_MANY_IMAGES;
        else if (!within_keys)
            status = DRUSE_STATUS_OUT_OF_MEMORY;
    }
    const bool good = status == 0;
    DRUSE_ROLLED
    for (int level = 0; good && level < p.n_levels; ++level) {
        const bool last = level + 1 == p.n_levels;
        if (team.warp() == 0) graph.list_images(level);
        team.sync();
        graph.listed = m.totals->n_images > 0;
        DRUSE_ROLLED
        for (int32_t i = team.warp(); i < n; i += team.warps()) {
            if (graph.atoms[i].members != kUndecided) continue;
            if (graph.listed || last) graph.choose(i, level);
            if (team.lane() == 0 && graph.atoms[i].members == kUndecided) team.join(&m.totals->undecided, 1u);
        }
        team.sync();
        if (last || m.totals->undecided == 0) break;
    }
    if (good) {
        DRUSE_ROLLED
        for (int32_t i = team.warp(); i < n; i += team.warps()) graph.edges_of(i, nullptr, first_atom);
        team.sync();
    }
    if (team.warp() == 0) {
        const int64_t count = good ? graph.place_edges() : 0;
        bool fits = false;
        const int64_t at = claim(team, ledger, b, count, out.edge_capacity, &fits);
        if (team.lane() == 0) {
            if (b == 0) out.edge_offsets[0] = 0;
            out.edge_offsets[b + 1] = at + (fits ? count : 0);
            out.edge_counts[b] = count;
            out.status[b] = (good ? m.totals->status : status) | (fits ? 0u : static_cast<uint32_t>(DRUSE_STATUS_EDGE_OVERFLOW));
            m.totals->at = at;
            m.totals->fits = fits ? 1u : 0u;
        }
    }
    team.sync();
    if (good && m.totals->fits != 0)
        DRUSE_ROLLED
        for (int32_t i = team.warp(); i < n; i += team.warps()) graph.edges_of(i, &out, first_atom);
}

}  // namespace druse
