// Searches over all pairs of a target, and the K-th smallest of them. visit(valid, d2, key) is called by all lanes at once.
#pragma once

#include "graph_pairs.hpp"

namespace druse {

template <class Team, bool kExact>
struct GraphSearch : GraphPairs<Team, kExact> {
    typedef GraphPairs<Team, kExact> Base;
    using Base::Base;
    using typename Base::Candidate;
    using Base::at_source;
    using Base::box;
    using Base::candidate_at;
    using Base::centre_of;
    using Base::m;
    using Base::n;
    using Base::pair_of;
    using Base::rank_in;
    using Base::source_of;
    using Base::split;
    using Base::squared;
    using Base::team;
    using Base::within_cutoff;

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
                    key = (first + j) << at_source | image.key;
                }
                visit(valid, d2, key);
                j += step_j;
                k += step_m;
                if (k >= n_images) k -= n_images, ++j;
            }
        }
    }

    // The same without a list.
    template <class Visit>
    DRUSE_TEAM void search_box(int32_t i, Visit visit) const {
        const int32_t total = n * box.size;
        DRUSE_ROLLED
        for (int32_t start = 0; start < total; start += team.lanes()) {
            Candidate c = {false, 0.0f, 0};
            if (start + team.lane() < total) c = candidate_at(i, start + team.lane());
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
                    one = candidate_at(c.i, e), one.valid = one.valid && within_cutoff(one.d2);
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
                const Candidate one = candidate_at(c.i, e);
                valid = one.valid && within_cutoff(one.d2) && one.d2 <= bound, key = one.key;
                if (valid) distance = distance_of(c.i, key);
            }
            visit(valid, distance, key);
        }
    }

    DRUSE_TEAM double distance_of(int32_t i, int32_t key) const {
        int32_t j, number[3];
        split(key, &j, number);
        return static_cast<double>(pair_of(i, j, number).distance);
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

    // Of more than K, none above `largest`.
    DRUSE_TEAM float kth_smallest(const Candidates &c, uint32_t k, float largest) const {
        const uint32_t lanes = static_cast<uint32_t>(team.lanes()), lane = static_cast<uint32_t>(team.lane());
        if (!c.stored || c.count > 2 * lanes)
            return select(c.count, k, largest, [&](float bound) { return tally(c, bound); });
        const float first = lane < c.count ? c.d2[lane] : __builtin_inff();
        const float second = lane + lanes < c.count ? c.d2[lane + lanes] : __builtin_inff();
        return select(c.count, k, largest, [&](float bound) {
            const uint32_t above = bits_of_float(first <= bound ? __builtin_inff() : first);
            const uint32_t also = bits_of_float(second <= bound ? __builtin_inff() : second);
            return Tally{team.sum((first <= bound ? 1u : 0u) + (second <= bound ? 1u : 0u)),
                         team.least(above < also ? above : also)};
        });
    }

    // Bisects the bits of the floats, guided by the counts, then walks up.
    template <class Count>
    DRUSE_TEAM float select(uint32_t found, uint32_t k, float largest, Count count) const {
        uint32_t low = bits_of_float(kCoincident2), high = bits_of_float(largest);  // count(low) < k <= count(high)
        uint32_t below = 0, up_to = found, next = 0;
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
            const Tally t = count(float_of_bits(middle));
            if (t.up_to < k) {
                low = middle, below = t.up_to, next = t.next, known = true;
            } else {
                high = middle, up_to = t.up_to;
            }
        }
        if (high - low <= 1) return float_of_bits(high);
        if (!known) next = count(float_of_bits(low)).next;
        DRUSE_ROLLED
        for (;;) {
            const float value = float_of_bits(next);
            const Tally t = count(value);
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
};

}  // namespace druse
