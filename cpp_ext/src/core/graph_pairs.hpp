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

// Bits that count up to a number.
DRUSE_TEAM int32_t width_of(int32_t number) {
    int32_t width = 0;
    for (; number > 0; number >>= 1) ++width;
    return width;
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

// An image of the list: its vector, and its part of a key.
struct alignas(16) GraphImage {
    float x, y, z;
    int32_t key;
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
    ImageBox box;                   // of the cutoff
    int32_t at_a, at_b, at_source;  // a pair's key, see key_of: where its parts begin, in bits
    bool listed;                    // the list of images is whole

    DRUSE_TEAM GraphPairs(const Team &team_, const GraphMemory &memory, const druse_graph_options &options, int32_t n_)
        : team(team_), m(memory), o(options), n(n_), atoms(n_ <= memory.atom_capacity ? memory.atoms : memory.far_atoms),
          p(*memory.prepared), box(), at_a(0), at_b(0), at_source(0), listed(false) {}

    // False where keys would leave int32: a search of that many pairs would not end.
    DRUSE_TEAM bool begin() {
        box = p.level[p.n_levels - 1].box;
        at_b = width_of(2 * box.most[2]);
        at_a = at_b + width_of(2 * box.most[1]);
        at_source = at_a + width_of(2 * box.most[0]);
        return static_cast<int64_t>(n) << at_source <= INT32_MAX;
    }

    // ---- pairs ------------------------------------------------------------------------------------------------------

    // Source and image as one number, in the order of a search.
    DRUSE_TEAM int32_t key_of(int32_t j, const int32_t *number) const {
        return j << at_source | (number[0] + box.most[0]) << at_a | (number[1] + box.most[1]) << at_b |
               (number[2] + box.most[2]);
    }

    DRUSE_TEAM void split(int32_t key, int32_t *j, int32_t *number) const {
        *j = key >> at_source;
        number[0] = (key >> at_a & ((1 << (at_source - at_a)) - 1)) - box.most[0];
        number[1] = (key >> at_b & ((1 << (at_a - at_b)) - 1)) - box.most[1];
        number[2] = (key & ((1 << at_b) - 1)) - box.most[2];
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

    struct Pair {
        Real vector[3];  // from the target to the image
        Real distance;
        float d2;        // exact mode: as a search finds it
    };

    // `image`, where it is wanted, is that of the source in the cell and for the coordinates that were given.
    DRUSE_TEAM Pair pair_of(int32_t i, int32_t j, const int32_t *number, int32_t *image = nullptr) const {
        DRUSE_RELOAD;
        Real shift[3];
        Pair pair;
        if constexpr (kExact) {
            Real source[3], whole[3];
            minimum_image(i, j, source, whole);
            DRUSE_RELOAD;
            shift_of(number, shift);
            for (int k = 0; k < 3; ++k) pair.vector[k] = source[k] + shift[k];
            pair.distance = __builtin_sqrt(sum_of_squares(pair.vector[0], pair.vector[1], pair.vector[2]));
            const float centre[3] = {0.0f, 0.0f, 0.0f};
            const GraphSource s = {static_cast<float>(source[0]), static_cast<float>(source[1]),
                                   static_cast<float>(source[2]), 0.0f};
            pair.d2 = squared(centre, s, static_cast<float>(shift[0]), static_cast<float>(shift[1]),
                              static_cast<float>(shift[2]));
            if (image != nullptr) {
                const double *t = p.reduced.transform;
                DRUSE_RELOAD;
                own_image(number, image);
                for (int k = 0; k < 3; ++k) {
                    const double of_source = (atoms[j].translation[k] - atoms[i].translation[k]) -
                                             combine(whole[0], whole[1], whole[2], t[k], t[3 + k], t[6 + k]);
                    image[k] += static_cast<int32_t>(of_source);
                }
            }
        } else {
            shift_of(number, shift);
            for (int k = 0; k < 3; ++k) pair.vector[k] = (atoms[j].position[k] - atoms[i].position[k]) + shift[k];
            pair.distance = __builtin_sqrtf(sum_of_squares(pair.vector[0], pair.vector[1], pair.vector[2]));
            pair.d2 = 0.0f;
            if (image != nullptr) own_image(number, image);
        }
        return pair;
    }

    // The same for an atom and an image of itself.
    DRUSE_TEAM void own_image(const int32_t *number, int32_t *image) const {
        for (int k = 0; k < 3; ++k) {
            if constexpr (kExact) {
                const double a = number[0], b = number[1], c = number[2], *t = p.reduced.transform;
                image[k] = static_cast<int32_t>(combine(a, b, c, t[k], t[3 + k], t[6 + k]));
            } else {
                image[k] = number[k];
            }
        }
    }

    struct Candidate {
        bool valid;
        float d2;
        int32_t key;
    };

    // Any pair at all, as searches number them; valid where its image can be in reach.
    DRUSE_TEAM Candidate candidate_at(int32_t i, int32_t e) const {
        DRUSE_RELOAD;
        const int32_t j = e / box.size;
        int32_t number[3];
        Real shift[3];
        image_at(box, e - j * box.size, number);
        shift_of(number, shift);
        Candidate c;
        c.key = key_of(j, number);
        c.d2 = squared_distance(i, j, shift);
        c.valid = in_reach(shift);
        return c;
    }

    DRUSE_TEAM bool in_reach(const Real *shift) const {
        if constexpr (kExact)
            return sum_of_squares(shift[0], shift[1], shift[2]) <= p.level[p.n_levels - 1].farthest2;
        else
            return true;
    }

    DRUSE_TEAM bool within_cutoff(float d2) const { return d2 > kCoincident2 && d2 <= p.level[p.n_levels - 1].r2; }

    // Whether a pair within the cutoff is in a target's list; `distance` decides in exact mode only.
    DRUSE_TEAM bool chosen_by(const GraphAtom &target, float d2, Real distance, int32_t key) const {
        if (!(d2 <= target.bound)) return false;
        if constexpr (kExact)
            return distance < target.farthest || (distance == target.farthest && key <= target.last_tie);
        else
            return d2 < target.bound || key <= target.last_tie;
    }

    // Whether the source of a pair that its target has chosen has chosen the target, too. In exact mode, the pair as its
    // source sees it has the negative vectors throughout, and so the same distances to the last bit.
    DRUSE_TEAM bool chosen_back(int32_t i, int32_t j, const int32_t *number) const {
        const int32_t mirrored[3] = {-number[0], -number[1], -number[2]};
        if constexpr (kExact) {
            const Pair pair = pair_of(i, j, number);
            return chosen_by(atoms[j], pair.d2, pair.distance, key_of(i, mirrored));
        } else {
            Real shift[3];
            shift_of(mirrored, shift);
            const float d2 = squared_distance(j, i, shift);
            return within_cutoff(d2) && chosen_by(atoms[j], d2, 0, key_of(i, mirrored));
        }
    }

    DRUSE_TEAM int32_t rank_in(uint32_t lanes) const {
        return bits_in(lanes & ((1u << team.lane()) - 1u));
    }

    DRUSE_TEAM int32_t *slot_of(int32_t i) const {
        return i < m.slot_atoms ? m.slots + i * m.slot_capacity : m.far_slots + i * m.slot_capacity;
    }

    DRUSE_TEAM void report(uint32_t bit) const {
        if (team.lane() == 0) team.join(&m.totals->status, bit);
    }
};

}  // namespace druse
