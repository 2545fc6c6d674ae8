// Pairs of a target atom and a source's image, by a team of threads (crystal_graph.hpp): what is known of one, and searches
// over all of a target's.
#pragma once

#include "graph_cell.hpp"

#if defined(__CUDACC__)
#define DRUSE_TEAM __device__ __forceinline__
#define DRUSE_ROLLED _Pragma("unroll 1")  // registers are scarcer than instructions,
#define DRUSE_RELOAD asm volatile("" ::: "memory")  // so what shared memory holds is not kept in them, either
#else
#define DRUSE_TEAM inline
#define DRUSE_ROLLED
#define DRUSE_RELOAD
#endif

namespace druse {

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
struct GraphPairs {
    typedef typename GraphReal<kExact>::type Real;

    const Team &team;
    const GraphMemory &m;
    const druse_graph_options &o;
    const int32_t n;
    GraphAtom *const atoms;
    const PreparedCrystal &p;
    ImageBox box;  // of the cutoff: a pair's key is source * box.size + place
    bool listed;   // the list of images is whole

    DRUSE_TEAM GraphPairs(const Team &team_, const GraphMemory &memory, const druse_graph_options &options, int32_t n_)
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

    DRUSE_TEAM int32_t rank_in(uint32_t lanes) const {
        return bits_in(lanes & ((1u << team.lane()) - 1u));
    }

    DRUSE_TEAM int32_t *slot_of(int32_t i) const {
        return i < m.slot_atoms ? m.slots + i * m.slot_capacity : m.far_slots + i * m.slot_capacity;
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

    DRUSE_TEAM void report(uint32_t bit) const {
        if (team.lane() == 0) team.join(&m.totals->status, bit);
    }
};

}  // namespace druse
