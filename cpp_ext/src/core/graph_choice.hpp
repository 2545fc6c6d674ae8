// A target's choice among all pairs: the K nearest, or all within the shell of the K-th.
#pragma once

#include "graph_search.hpp"

namespace druse {

template <class Team, bool kExact>
struct GraphChoice : GraphSearch<Team, kExact> {
    typedef GraphSearch<Team, kExact> Base;
    using Base::Base;
    using typename Base::Candidate;
    using typename Base::Candidates;
    using typename Base::ExactTally;
    using typename Base::Ties;
    using Base::atoms;
    using Base::chosen_by;
    using Base::distance_of;
    using Base::each;
    using Base::each_doubtful;
    using Base::kth_smallest;
    using Base::listed;
    using Base::m;
    using Base::mark;
    using Base::o;
    using Base::p;
    using Base::rank_in;
    using Base::report;
    using Base::search_box;
    using Base::search_list;
    using Base::slot_of;
    using Base::tally;
    using Base::tally_exactly;
    using Base::team;

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
            search_box(i, enter);
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
};

}  // namespace druse
