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

#include "graph_choice.hpp"
#include "ledger.hpp"

namespace druse {

template <class Team, bool kExact>
struct CrystalGraphTeam : GraphChoice<Team, kExact> {
    typedef GraphChoice<Team, kExact> Base;
    using Base::Base;
    using typename Base::Pair;
    using typename Base::Real;
    using Base::atoms;
    using Base::box;
    using Base::choose;
    using Base::chosen_back;
    using Base::chosen_by;
    using Base::in_reach;
    using Base::key_of;
    using Base::listed;
    using Base::m;
    using Base::n;
    using Base::o;
    using Base::own_image;
    using Base::p;
    using Base::pair_of;
    using Base::rank_in;
    using Base::search_box;
    using Base::search_list;
    using Base::shift_of;
    using Base::slot_of;
    using Base::split;
    using Base::team;
    using Base::within_cutoff;

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
                image.key = key_of(0, number);
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
        for (int32_t e = team.lane(); e < box.size; e += team.lanes()) {
            int32_t number[3];
            Real shift[3];
            image_at(box, e, number);
            shift_of(number, shift);
            if (in_reach(shift)) ++count;
        }
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
        // is_half or is_extra, by all lanes at once
        const auto take = [&](bool is_half, bool is_extra, int32_t key) {
            const uint32_t halves = team.ballot(is_half), extras = unite ? team.ballot(is_extra) : 0u;
            const int32_t place = is_half ? half + rank_in(halves) : extra + rank_in(extras);
            if (out != nullptr) {
                if (is_half || is_extra) write_edge(*out, place, first_atom, i, key, is_extra);
            } else if (members >= 0) {  // the slot keeps only what is an edge; a negative key is an extra one
                team.sync_warp();
                if (is_half || is_extra) slot[kept + rank_in(halves | extras)] = is_half ? key : ~key;
                kept += bits_in(halves | extras);
            }
            half += bits_in(halves);
            extra += bits_in(extras);
        };
        const auto judge = [&](int32_t j, const int32_t *number, bool *is_half, bool *is_extra) {
            *is_half = whole || j < i;
            if (j == i && !whole) {
                int32_t image[3];
                own_image(number, image);
                *is_half = is_half_edge(i, i, image);
            }
            *is_extra = unite && !*is_half && !chosen_back(i, j, number);
        };
        team.sync_warp();
        if (members >= 0) {
            DRUSE_ROLLED
            for (int32_t start = 0; start < members; start += team.lanes()) {
                const int32_t e = start + team.lane();
                bool is_half = false, is_extra = false;
                int32_t key = 0;
                if (e < members) {
                    key = slot[e];
                    is_half = key >= 0, is_extra = key < 0;
                    key = key < 0 ? ~key : key;
                    if (out == nullptr) {
                        int32_t j, number[3];
                        split(key, &j, number);
                        judge(j, number, &is_half, &is_extra);
                    }
                }
                take(is_half, is_extra, key);
            }
        } else {
            const auto look = [&](bool valid, float d2, int32_t key) {
                bool is_half = false, is_extra = false;
                if (valid && within_cutoff(d2)) {
                    int32_t j, number[3];
                    split(key, &j, number);
                    const Real distance = kExact ? pair_of(i, j, number).distance : 0;
                    if (chosen_by(target, d2, distance, key)) judge(j, number, &is_half, &is_extra);
                }
                take(is_half, is_extra, key);
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

    DRUSE_TEAM void write_edge(const druse_edges &out, int64_t at, int64_t first_atom, int32_t i, int32_t key,
                               bool mirrored) const {
        int32_t j, number[3], image[3];
        split(key, &j, number);
        const Pair pair = pair_of(i, j, number, image);
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
